"""Signed by an identity: with Sigstore a key lives for one signing, and a log that all can read remembers whose it was.

Each statement is a bundle (sigstore/protobuf-specs, v0.3) in a manifest of its own, and what signs an image is a
statement too ("Cosign Bundle Specification"): the form of cosign since version 3.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container.proof import provenance, referrers, signature
from modelpack.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig, TrustedRoot
    from sigstore.oidc import IdentityToken
    from sigstore.sign import Signer
    from sigstore.verify import Verifier
    from sigstore.verify.policy import VerificationPolicy

    from modelpack.container.archive import Attached
    from modelpack.container.proof.referrers import Part, Subject

TOKEN = "SIGSTORE_ID_TOKEN"  # noqa: S105 - the variable's name
CONFIG = "MODELPACK_SIGSTORE_CONFIG"
_QUIET = logging.NullHandler()
"""Takes what the library warns of: it is an error here or was asked for, and Python would print it."""
_ISSUER = "1.3.6.1.4.1.57264.1.1"
"""Extension of Fulcio's certificates that names who vouches for the identity."""
_NO_TOKEN = (
    f"set {TOKEN} to an OIDC token for the audience 'sigstore', such as `sigstore get-identity-token` prints; a job of "
    "GitHub's needs `permissions: {id-token: write}`"
)
_REFUSED = (
    f"see that the token is a fresh one and that the instance answers; {CONFIG} names another than the public one"
)
_NO_ROOT = "name one with --trusted-root, a file as Sigstore's own trusted_root.json"


class IdentitySeal:
    """Signs as whoever an identity token names.

    Attributes:
        label: Who that was, once something is signed.
    """

    def __init__(self, signer: Signer, root: TrustedRoot) -> None:
        self._signer, self._root = signer, root
        self.label = "signed"

    def image(self, subject: Subject, repository: str) -> Attached:
        """Sign an image."""
        text = canonical.encode(provenance.statement(repository, subject.digest, signature.SIGNED, {}))
        return self._bundle(subject, signature.SIGNED, text)

    def statements(self, subject: Subject, texts: Mapping[str, bytes]) -> list[Attached]:
        """Sign statements about an image; predicate type → statement."""
        return [self._bundle(subject, kind, text) for kind, text in sorted(texts.items())]

    def _bundle(self, subject: Subject, predicate: str, text: bytes) -> Attached:
        """Sign, and check the result as others will: a log may answer with anything."""
        from sigstore.dsse import Statement

        with _asked():
            bundle = self._signer.sign_dsse(Statement(text))
            who, issuer = _identity(bundle.signing_certificate)
        part = referrers.Part(signature.BUNDLE, bundle.to_json().encode(), {})
        try:
            _trust(who, issuer, self._root).said(part)
        except StageError as error:
            raise StageError(
                f"what Sigstore signed does not hold: {error.what}", where="sigstore", then=_REFUSED
            ) from error
        self.label = f"signed by {who} of {issuer}"
        notes = {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": predicate,
            "org.opencontainers.image.created": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return referrers.attach(signature.BUNDLE, subject, [part], notes=notes)


@dataclass(frozen=True)
class IdentityTrust:
    """Trusts an identity, where a certificate authority and logs confirm that it signed."""

    verifier: Verifier
    policy: VerificationPolicy
    label: str

    def said(self, part: Part) -> dict[str, Any] | None:
        """Give the statement that the identity signed; None where there is none.

        Raises:
            StageError: When a bundle is not to be trusted.
        """
        if part.media != signature.BUNDLE:
            return None
        from cryptography.x509 import ExtensionNotFound
        from sigstore.errors import CertValidationError, Error
        from sigstore.models import Bundle

        try:
            kind, payload = self.verifier.verify_dsse(Bundle.from_json(part.data), self.policy)
        except CertValidationError as error:
            raise StageError("its certificate is of another Sigstore instance or another time") from error
        except (Error, ExtensionNotFound, ValueError, TypeError, OverflowError, OSError) as error:
            raise StageError(_short(str(error))) from error
        if kind != signature.STATEMENT:
            raise StageError(f"a bundle holds {kind}")
        return signature.parsed(payload)


def seal() -> IdentitySeal:
    """Get a certificate for whoever runs this, and be ready to sign.

    Raises:
        MissingError: When nobody says who signs, or a service of Sigstore's does not answer or refuses.
        UsageError: When the description of a private Sigstore makes no sense.
    """
    check()
    from sigstore.sign import Signer, SigningContext

    config = _config()
    with _asked():
        return IdentitySeal(Signer(_token(), SigningContext.from_trust_config(config)), config.trusted_root)


def check() -> None:
    """See that signing can begin: the library is there, and something says who signs.

    Raises:
        MissingError: When not.
        UsageError: When the description of a private Sigstore makes no sense.
    """
    _library()
    if os.environ.get(CONFIG):
        _config()
    with _asked():
        _token()


def trusted(identity: str, issuer: str, root: Path | None) -> IdentityTrust:
    """Trust an identity that an issuer vouches for.

    Args:
        identity: What the certificate names: a mail address or a URI.
        issuer: URL of the OIDC provider.
        root: File with the keys of a Sigstore instance; the public one's, as the library brings them, when absent.

    Raises:
        MissingError: When `sigstore` is not installed.
        UsageError: When the file holds nothing of the kind.
    """
    _library()
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig, TrustedRoot

    try:
        known = TrustedRoot.from_file(str(root)) if root else ClientTrustConfig.production(offline=True).trusted_root
        return _trust(identity, issuer, known)
    except OSError as error:
        raise UsageError(
            f"the trusted root cannot be read: {error.strerror}", where=str(error.filename or root), then=_NO_ROOT
        ) from error
    except (Error, ValueError) as error:
        raise UsageError("no trusted root of a Sigstore instance", where=str(root), then=_NO_ROOT) from error


def _trust(identity: str, issuer: str, root: TrustedRoot) -> IdentityTrust:
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    return IdentityTrust(Verifier(trusted_root=root), Identity(identity=identity, issuer=issuer), identity)


def _library() -> None:
    try:
        import sigstore
    except ImportError as error:
        raise MissingError("keyless signatures need 'sigstore'", then="pip install 'modelpack[sigstore]'") from error
    logging.getLogger(sigstore.__name__).addHandler(_QUIET)


def _token() -> IdentityToken:
    """Take the token from the environment, or from the machine of GitHub, GitLab, … that this runs on."""
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential

    try:
        raw = os.environ.get(TOKEN) or detect_credential()
        if not raw:
            raise MissingError("nobody says who signs", where="sigstore", then=_NO_TOKEN)
        return IdentityToken(raw)
    except IdentityError as error:
        told = ": ".join(dict.fromkeys(str(each) for each in (error, error.__cause__) if each))
        raise MissingError(f"who signs cannot be told: {_short(told)}", where="sigstore", then=_NO_TOKEN) from error


def _config() -> ClientTrustConfig:
    """Find the services: the public ones, or those that a file names."""
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig

    path = os.environ.get(CONFIG)
    if not path:
        with _asked():
            return ClientTrustConfig.production()
    try:
        return ClientTrustConfig.from_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{CONFIG} cannot be read: {error.strerror}", where=path) from error
    except (Error, ValueError) as error:
        raise UsageError(f"{CONFIG} names no client trust configuration of Sigstore", where=path) from error


def _identity(certificate: Certificate) -> tuple[str, str]:
    """Read whom a certificate names, and who vouches for it."""
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier)
    who = next((str(name) for kind in kinds for name in names.get_values_for_type(kind)), "")
    issuer = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_ISSUER)).value
    assert isinstance(issuer, x509.UnrecognizedExtension), "no standard knows it"
    return who, issuer.value.decode()


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    """Tell what went wrong between us and the services of Sigstore."""
    from cryptography.x509 import ExtensionNotFound
    from requests import RequestException
    from sigstore._internal.fulcio.client import ExpiredCertificate, FulcioClientError
    from sigstore._internal.rekor import RekorClientError
    from sigstore.errors import Error
    from sigstore.oidc import ExpiredIdentity
    from urllib3.exceptions import HTTPError

    late = (ExpiredCertificate, ExpiredIdentity)
    network, answer = (RequestException, HTTPError), (ExtensionNotFound, ValueError, KeyError)
    refused = (Error, FulcioClientError, RekorClientError, *network, *answer)
    try:
        yield
    except late as error:
        raise MissingError("the identity token is too old", where="sigstore", then=_NO_TOKEN) from error
    except refused as error:
        raise MissingError(f"Sigstore did not sign: {_reason(error)}", where="sigstore", then=_REFUSED) from error


def _reason(error: BaseException) -> str:
    """Say what went wrong, and what lies at the bottom of it: an unknown host, a connection refused."""
    below = error
    while deeper := below.__cause__ or below.__context__:
        below = deeper
    told = dict.fromkeys(str(each).partition(" (Caused by")[0] for each in (error, below) if str(each))
    return _short(": ".join(told) or type(error).__name__)


def _short(text: str) -> str:
    """Take a line that a terminal can show; what a bundle or a server says may hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.partition("\n")[0][:200])
