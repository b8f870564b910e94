"""The rules of CNCF ModelPack 0.0.7 for a manifest and its configuration, as JSON Schemas in our own words."""

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
MOMENT = {"type": "string", "format": "date-time"}
MODALITIES = {
    "type": "array",
    "items": {"enum": ["text", "image", "audio", "video", "embedding", "other"]},
}


def closed(required=(), **properties):
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


CONFIG = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **closed(
        ("descriptor", "config", "modelfs"),
        descriptor=closed(
            createdAt=MOMENT, authors=TEXTS, vendor=TEXT, family=TEXT, name={**TEXT, "minLength": 1}, version=TEXT,
            title=TEXT, description=TEXT, docURL=TEXT, sourceURL=TEXT, datasetsURL=TEXTS, revision=TEXT, licenses=TEXTS,
        ),
        config=closed(
            architecture=TEXT, format=TEXT, quantization=TEXT,
            paramSize={**TEXT, "pattern": r"^\d+(\.\d)?[kKmMbBtTqQ]$"},
            precision={**TEXT, "pattern": r"^[a-z]+\d*(_e\dm\d)?(,[a-z]+\d*(_e\dm\d)?)*$"},
            capabilities=closed(
                inputTypes=MODALITIES, outputTypes=MODALITIES, knowledgeCutoff=MOMENT, reasoning={"type": "boolean"},
                toolUsage={"type": "boolean"}, reward={"type": "boolean"},
                languages={"type": "array", "items": {**TEXT, "pattern": "^[a-z]{2}$"}},
            ),
        ),
        modelfs=closed(
            ("type", "diffIds"),
            type={"const": "layers"},
            diffIds={"type": "array", "minItems": 1, "items": {**TEXT, "pattern": "^sha256:[0-9a-f]{64}$"}},
        ),
    ),
}  # fmt: skip

DIGEST = {**TEXT, "pattern": "^sha256:[0-9a-f]{64}$"}
SIZE = {"type": "integer", "minimum": 0}
NOTES = {"type": "object", "additionalProperties": TEXT}

MANIFEST = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **closed(
        ("schemaVersion", "mediaType", "artifactType", "config", "layers"),
        schemaVersion={"const": 2},
        mediaType={"const": "application/vnd.oci.image.manifest.v1+json"},
        artifactType={"const": "application/vnd.cncf.model.manifest.v1+json"},
        config=closed(
            ("mediaType", "digest", "size"),
            mediaType={"const": "application/vnd.cncf.model.config.v1+json"}, digest=DIGEST, size=SIZE,
        ),
        layers={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ("mediaType", "digest", "size"),
                mediaType={
                    **TEXT,
                    "pattern": r"^application/vnd\.cncf\.model\.(weight|weight\.config|doc|code|dataset)\.v1"
                    r"\.(raw|tar|tar\+gzip|tar\+zstd)$",
                },
                digest=DIGEST, size=SIZE, annotations=NOTES,
            ),
        },
        annotations=NOTES,
    ),
}  # fmt: skip

METADATA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **closed(
        ("name", "mode", "uid", "gid", "size", "mtime", "typeflag"),
        name={**TEXT, "pattern": "^[^/]+$"}, mode=SIZE, uid=SIZE, gid=SIZE, size=SIZE, mtime=MOMENT,
        typeflag={"type": "integer", "minimum": 0, "maximum": 255},
    ),
}  # fmt: skip
"""What the annotation ``org.cncf.model.file.metadata+json`` holds."""
