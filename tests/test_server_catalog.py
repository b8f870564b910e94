"""Several models and versions: found, chosen in the path, exchanged and rolled back while requests run."""

from __future__ import annotations

import asyncio
import json
import signal
import threading

import numpy as np
import pytest

from modelpack.server.catalog import Catalog
from modelpack.server.faults import Disconnected, Forbidden, Invalid, StartError, Unknown
from modelpack.server.router import Protocol, Route, Router
from modelpack.server.service import Service
from modelpack.server.settings import Settings
from serving import JSON, Server, linear, pair, scaled


@pytest.fixture
def root(tmp_path):
    """Two models: one with versions 2 and 10, one without versions."""
    folder = tmp_path / "models"
    scaled(folder / "scale" / "2", 2)
    scaled(folder / "scale" / "10", 10)
    pair(folder / "pair")
    (folder / "pair" / "card.json").write_text('{"version": "2026-01", "precision": "int8"}')
    (folder / ".draft").mkdir()
    (folder / "notes").mkdir()
    return folder


def settings(root, **given):
    return Settings(model=str(root), threads=1, **given)


def never():
    return False


async def ask(catalog, name="", version=""):
    with catalog.find(name, version) as model:
        answer = await model.infer({"x": np.ones((1, 1))}, asyncio.get_running_loop().time() + 10, never)
    return answer.outputs["y"].item()


def play(root, scene, **given):
    async def whole():
        catalog = Catalog(settings(root, **given), None)
        await catalog.start()
        try:
            return await scene(catalog)
        finally:
            catalog.close()

    return asyncio.run(whole())


def test_versions_are_found_and_the_highest_is_current(root):
    async def scene(catalog):
        assert {(model.name, model.version) for model in catalog.models} == {
            ("scale", "2"), ("scale", "10"), ("pair", "2026-01"),
        }  # fmt: skip
        assert catalog.versions("scale") == ["2", "10"]
        assert catalog.find("pair").card["precision"] == "int8"
        assert all(entry["state"] == "READY" for entry in catalog.index())
        with pytest.raises(Invalid, match="the models 'pair', 'scale'"):
            catalog.find()
        with pytest.raises(Unknown, match="no model 'scales'"):
            catalog.find("scales")
        with pytest.raises(Unknown, match="no version '3', but '2', '10'"):
            catalog.find("scale", "3")
        return [await ask(catalog, "scale"), await ask(catalog, "scale", "2")]

    assert play(root, scene) == [10, 2]


def test_a_file_chooses_the_current_version(root):
    (root / "scale" / "current").write_text("2\n")
    assert play(root, lambda catalog: ask(catalog, "scale")) == 2
    (root / "scale" / "current").write_text("7")
    with pytest.raises(StartError, match="names version '7'"):
        Catalog(settings(root), None)


def test_a_directory_may_be_one_model(tmp_path):
    folder = scaled(tmp_path / "model", 3)
    assert play(folder, ask) == 3
    (folder / "card.json").write_text('{"name": "../a/b", "version": 7}')

    async def scene(catalog):
        return await ask(catalog, "../a/b", "7")

    assert play(folder, scene) == 3


def test_a_new_version_is_loaded_and_rolled_back(root):
    async def scene(catalog):
        scaled(root / "scale" / ".11", 11)
        await catalog.load("scale")
        answers = [await ask(catalog, "scale")]
        (root / "scale" / ".11").rename(root / "scale" / "11")
        kept = catalog.find("scale", "2")
        await catalog.load("scale")
        assert catalog.find("scale", "2") is kept, "what did not change is not loaded again"
        answers.append(await ask(catalog, "scale"))
        for _ in range(2):
            await catalog.rollback("scale")
            answers.append(await ask(catalog, "scale"))
        with pytest.raises(Invalid, match="no version before '2'"):
            await catalog.rollback("scale")
        return answers

    assert play(root, scene) == [10, 11, 10, 2]


def test_a_rollback_holds_until_the_directory_wants_something_new(root):
    """Whoever reads the directory again, for a new token or another model, does not undo it."""

    async def scene(catalog):
        answers = []

        async def told():
            await catalog.load("scale")
            await catalog.refresh()
            answers.append(await ask(catalog, "scale"))

        async def back():
            await catalog.rollback("scale")
            await told()

        await back()  # from 10 to 2
        scaled(root / "other", 5)
        await told()
        scaled(root / "scale" / "11", 11)
        await told()
        await back()  # to 2, which was current before
        scaled(root / "scale" / "11", 11.5)  # mended in place
        await told()
        await back()
        (root / "scale" / "current").write_text("11")  # said once more
        await told()
        await back()
        await catalog.unload("scale")
        await told()
        return answers

    assert play(root, scene) == [2, 2, 11, 2, 11.5, 2, 11.5, 2, 11.5]


def test_what_a_client_unloaded_stays_so_until_it_changes_or_is_loaded(root):
    async def scene(catalog):
        await catalog.unload("scale")
        await catalog.refresh()
        assert sorted(catalog.current) == ["pair"]
        scaled(root / "scale" / "11", 11)
        await catalog.refresh()
        assert await ask(catalog, "scale") == 11
        await catalog.unload("pair")
        for file in (root / "pair").iterdir():
            file.unlink()
        await catalog.refresh()
        return {entry["name"] for entry in catalog.index()}

    assert play(root, scene) == {"scale"}, "what is gone from the directory too is not told of for ever"


def test_a_directory_that_is_empty_for_a_moment_changes_nothing(root, caplog):
    async def scene(catalog):
        root.rename(root.with_name("away"))
        await catalog.refresh()
        root.mkdir()
        await catalog.refresh()
        return await ask(catalog, "scale")

    assert play(root, scene) == 10
    assert caplog.text.count("the models stay as they are: no model is left in") == 2


def test_a_load_that_is_given_up_leaves_no_thread(root):
    async def scene(catalog):
        def running():
            return {thread for thread in threading.enumerate() if thread.name.startswith("run-")}

        before = running()
        for version in (11, 12):
            scaled(root / "scale" / str(version), version)
        second, prepare = asyncio.Event(), catalog._load

        async def held(model):
            if model.version == "12":
                second.set()
                await asyncio.sleep(60)
            await prepare(model)

        catalog._load = held
        loading = asyncio.create_task(catalog.load("scale"))
        await second.wait()
        assert running() > before
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        async with asyncio.timeout(30):
            while running() - before:
                await asyncio.sleep(0.01)
        return await ask(catalog, "scale")

    assert play(root, scene) == 10


def test_files_that_changed_in_place_are_read_again(root):
    async def scene(catalog):
        scaled(root / "scale" / "10", 12.5)
        await catalog.load("scale")
        return await ask(catalog, "scale", "10")

    assert play(root, scene) == 12.5


def test_a_version_that_cannot_be_served_changes_nothing(root):
    async def scene(catalog):
        scaled(root / "scale" / "11", 11)
        (root / "scale" / "11" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(Invalid, match="cannot be loaded"):
            await catalog.load("scale")
        (root / "scale" / "11" / "signature.json").write_text("{}")
        with pytest.raises(Invalid, match="not a signature"):
            await catalog.load("scale")
        assert catalog.versions("scale") == ["2", "10"]
        with pytest.raises(Unknown):
            await catalog.load("other")
        return await ask(catalog, "scale")

    assert play(root, scene) == 10


def test_an_unloaded_model_comes_back(root):
    async def scene(catalog):
        await catalog.unload("scale")
        with pytest.raises(Unknown):
            catalog.find("scale")
        assert {"name": "scale", "version": "10", "state": "UNAVAILABLE", "reason": "unloaded"} in catalog.index()
        await catalog.load("scale")
        return await ask(catalog, "scale")

    assert play(root, scene) == 10


def test_a_request_keeps_its_version_until_it_is_answered(root):
    async def scene(catalog):
        with catalog.find("scale", "10") as model:
            await catalog.unload("scale")
            answer = await model.infer({"x": np.ones((1, 1))}, asyncio.get_running_loop().time() + 10, never)
            assert model.ready
        assert not model.ready, "its memory is free"
        return answer.outputs["y"].item()

    assert play(root, scene) == 10


def test_refreshing_takes_what_is_good_and_keeps_the_rest(root):
    async def scene(catalog):
        scaled(root / "new", 5)
        (root / "scale" / "10" / "signature.json").write_text("{}")
        for file in (root / "pair").iterdir():
            file.unlink()
        await catalog.refresh()
        assert sorted(catalog.current) == ["new", "scale"]
        return await ask(catalog, "new"), await ask(catalog, "scale")

    assert play(root, scene) == (5, 10)


@pytest.mark.parametrize("spoil", ["card", "current"])
def test_a_directory_that_cannot_be_read_changes_nothing(root, spoil, caplog):
    async def scene(catalog):
        if spoil == "card":
            (root / "pair" / "card.json").write_text("[]")
        else:
            (root / "scale" / "current").write_bytes(b"\xff")
        scaled(root / "scale" / "11", 11)
        await catalog.refresh()
        return await ask(catalog, "scale")

    assert play(root, scene) == 10
    assert "as they are" in caplog.text or "as it is" in caplog.text


def test_clients_change_nothing_unless_they_may(root):
    async def whole(**given):
        service = Service(settings(root, **given))
        await service.load()
        try:
            return (await service.change(lambda: service.catalog.rollback("scale"))).version
        finally:
            service.close()

    with pytest.raises(Forbidden, match="MODELPACK_ALLOW_LOADING=1"):
        asyncio.run(whole())
    assert asyncio.run(whole(allow_loading=1)) == "2"


def test_a_client_that_left_is_counted_nowhere(root):
    async def scene(catalog):
        with catalog.find("scale") as model:
            with pytest.raises(Disconnected):
                await model.infer({"x": np.ones((1, 1))}, asyncio.get_running_loop().time() + 10, lambda: True)
            with pytest.raises(Invalid):
                await model.infer({}, 0, never)
            known = model.statistics.figures(catalog.ledger.totals())
            return known.fail[0], known.success[0]

    assert play(root, scene) == (0, 0)


def test_paths_choose_model_and_version(root):
    with Server(root) as server:

        def value(path):
            status, _, body = server.ask("POST", path, '{"instances": [[1]]}', JSON)
            answer = json.loads(body)
            return answer["predictions"][0][0] if status == 200 else (status, answer["error"])

        assert [value("/predict/scale"), value("/predict/scale/2")] == [10, 2]
        assert value("/predict")[0] == 400
        assert value("/predict/other")[0] == value("/predict/scale/3")[0] == 404
        assert value("/rollback/scale")[0] == 403
        listed = json.loads(server.ask("GET", "/")[2])["models"]
        assert {"name": "scale", "version": "2", "state": "READY", "reason": ""} in listed
        card = json.loads(server.ask("GET", "/card/scale/2")[2])
        assert (card["name"], card["version"], card["inputs"]["x"]["dtype"]) == ("scale", "2", "float32")
        document = json.loads(server.ask("GET", "/openapi.json")[2])
        assert {"/predict/scale", "/predict/pair"} <= set(document["paths"])
        assert {"scale.Rows", "pair.Columns"} <= set(document["components"]["schemas"])
        info = 'modelpack_model_info{digest="",model="scale",ort_version='
        assert info in server.ask("GET", "/metrics")[2].decode()


def test_no_request_is_lost_while_a_version_is_exchanged_and_rolled_back(tmp_path):
    """Clients that never pause see the old version's answers, then the new one's, and nothing else."""
    root = tmp_path / "models"
    scaled(root / "scale" / "1", 1)
    seen, done = [[] for _ in range(4)], threading.Event()
    with Server(root, allow_loading=1) as server:

        def client(answers):
            while not done.is_set():
                status, answer = server.predict({"instances": [[1]]})
                answers.append(answer["predictions"][0][0] if status == 200 else (status, answer))

        def settled(value, count=3):
            while server.predict({"instances": [[1]]})[1]["predictions"] != [[value]]:
                pass
            target = [len(answers) + count for answers in seen]
            while any(len(answers) < least for answers, least in zip(seen, target, strict=True)):
                done.wait(0.01)

        clients = [threading.Thread(target=client, args=(answers,), daemon=True) for answers in seen]
        for each in clients:
            each.start()
        settled(1)
        for version in (2, 3):
            scaled(root / "scale" / ".next", version)
            (root / "scale" / ".next").rename(root / "scale" / str(version))
            server.process.send_signal(signal.SIGHUP)
            server.line(rf"serving: scale {version}")
            settled(version)
        assert server.ask("POST", "/rollback/scale")[0] == 200
        settled(2)
        done.set()
        for each in clients:
            each.join(30)
        assert server.stop() == 0
    for answers in seen:
        changes = [value for at, value in enumerate(answers) if not at or answers[at - 1] != value]
        assert changes == [1, 2, 3, 2]


async def nothing(_service, _request): ...


@pytest.mark.parametrize("order", [1, -1])
def test_routes_are_found_by_path_and_named_parts(order):
    routes = ("/plain", "/m/{model}", "/m/{model}:predict", "/m/{model}/versions/{version}:predict", "/m/fixed")
    table = Protocol("a", tuple(Route("POST", path, nothing) for path in routes[::order]))
    router = Router([table])

    def found(path):
        place, parts = router.find(path)
        return (place.name, parts) if place else None

    assert found("/plain") == ("/plain", {})
    assert found("/m/fixed") == ("/m/fixed", {}), "a plain path goes before a named part"
    assert found("/m/x:y") == ("/m/{model}", {"model": "x:y"})
    assert found("/m/x:predict") == ("/m/{model}:predict", {"model": "x"})
    assert found("/m/x/versions/1:predict") == ("/m/{model}/versions/{version}:predict", {"model": "x", "version": "1"})
    for path in ("/plain/", "/m/", "/m/x/versions/:predict", "/M/x", "", "/m/x/y"):
        assert found(path) is None


def test_two_protocols_cannot_claim_one_path():
    first = Protocol("first", (Route("GET", "/m/{model}", nothing),))
    second = Protocol("second", (Route("POST", "/m/{name}", nothing),))
    with pytest.raises(StartError, match=r"/m/\{name\} belongs to first and to second"):
        Router([first, second])


def test_a_directory_without_models_says_what_it_looked_for(tmp_path):
    with pytest.raises(StartError, match="signature cannot be read"):
        Catalog(settings(tmp_path), None)
    linear(tmp_path / "a")
    (tmp_path / "a" / "card.json").write_text("[1]")
    with pytest.raises(StartError, match="not a JSON object"):
        Catalog(settings(tmp_path), None)
