"""The generator against a scripted server with known timings, cuts and faults, over real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headrace.bench.client import Client
from headrace.bench.load import Level, calibrate, run_level, warm_up
from headrace.bench.stats import LevelResult, Sample
from headrace.bench.workload import Length, Workload
from headrace.errors import ConfigError, HeadraceError
from tests.bench.scripted_server import (
    DONE,
    HEAD,
    Script,
    Scripted,
    chunk,
    json_answer,
    obedient,
    scripted,
    token,
    usage,
)

WORK = Workload("m", chat=False, ids=True, input=Length(12, 12), output=Length(6, 6))


def against(script: Script, work: Callable[[Scripted, Client], Awaitable[None]], timeout: float = 60.0) -> Scripted:
    async def session() -> Scripted:
        async with scripted(script) as server:
            client = Client(server.url, timeout=timeout)
            await work(server, client)
            client.close()
            return server

    return asyncio.run(session())


def level_of(script: Script, level: Level, work: Workload = WORK) -> tuple[Scripted, LevelResult]:
    found: list[LevelResult] = []

    async def run(_: Scripted, client: Client) -> None:
        found.append(await run_level(client, work, level))

    return against(script, run), found[0]


def one_of(script: Script, timeout: float = 60.0) -> Sample:
    found: list[Sample] = []

    async def run(_: Scripted, client: Client) -> None:
        found.append(await client.send("/v1/completions", WORK.body([1, 2], 4)))

    against(script, run, timeout)
    return found[0]


def test_known_timings_are_measured() -> None:
    server, result = level_of(obedient(first=0.1, gap=0.03), Level(8, concurrency=4))
    assert (result.succeeded, result.errors) == (8, {})
    assert (result.prompt_tokens, result.output_tokens) == (8 * 12, 8 * 6)
    # A busy machine makes everything later; how the numbers bound each other stays, but for a read that came late.
    assert 100 <= result.ttft_ms.p50 < result.e2e_ms.p50 - 100
    assert result.itl_ms.p50 > 25
    assert 25 < result.tpot_ms.p50 <= (result.e2e_ms.p99 - 100) / 5
    assert result.e2e_ms.mean <= result.seconds * 1000 * 4 / 8 + 1, "4 at a time, 8 of them"
    assert result.output_tokens_per_s == pytest.approx(48 / result.seconds, rel=0.01)
    assert server.most_at_once == 4


def test_a_closed_loop_keeps_its_connections() -> None:
    server, result = level_of(obedient(), Level(40, concurrency=3))
    assert (result.succeeded, server.connections) == (40, 3)
    assert server.most_at_once <= 3


def test_a_closed_loop_ends_by_time() -> None:
    server, result = level_of(obedient(first=0.02), Level(None, concurrency=2, seconds=0.3))
    assert result.succeeded == len(server.bodies)
    assert 2 <= result.succeeded <= 2 * (0.3 / 0.02 + 1)
    assert result.seconds >= 0.3


def test_an_open_loop_does_not_wait_for_answers() -> None:
    server, result = level_of(obedient(first=0.4), Level(20, rate=100.0))
    assert result.succeeded == 20
    assert server.most_at_once > 10
    assert result.ttft_ms.p50 >= 400


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """Blocking the client itself must show as latency: otherwise slow moments would hide themselves."""
    found: list[LevelResult] = []

    async def run(_: Scripted, client: Client) -> None:
        import time

        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.3)
        found.append(await run_level(client, WORK, Level(50, rate=200.0)))

    against(obedient(), run)
    assert found[0].late_ms_p99 > 100
    assert found[0].ttft_ms.p95 > 100


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        (lambda _: [json_answer(429, {"error": {"message": "queue full"}})], "http 429", "queue full"),
        (lambda _: [json_answer(500, "oops")], "http 500", "oops"),
        (lambda _: [json_answer(200, {"choices": []})], "not a stream", "choices"),
        (lambda _: [HEAD, chunk(token("a")), b""], "connection lost", ""),
        (lambda _: [HEAD, chunk(token("a")), b"0\r\n\r\n"], "truncated", "[DONE]"),
        (lambda _: [b"NONSENSE\r\n\r\n"], "not HTTP", ""),
        (lambda _: [HEAD, 1.0, b""], "timeout", "0.3 s"),
        (lambda _: [b""], "connection lost", ""),
    ],
)
def test_every_failure_has_its_kind(script: Script, kind: str, words: str) -> None:
    sample = one_of(script, timeout=0.3 if kind == "timeout" else 60)
    assert sample.error == kind
    assert words in sample.detail
    assert sample.end >= sample.start


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    sample = one_of(lambda _: [head, token("a"), token("b"), usage(1, 2), DONE, b""])
    assert (sample.error, sample.chunks, sample.output_tokens) == (None, 2, 2)


def test_bytes_one_by_one_count_the_same() -> None:
    whole = HEAD + chunk(token("é") + token("b")) + chunk(usage(1, 2)) + chunk(DONE) + b"0\r\n\r\n"
    sample = one_of(lambda _: [whole[i : i + 1] for i in range(len(whole))])
    assert (sample.error, sample.chunks, sample.output_tokens) == (None, 2, 2)


def test_a_connection_closed_while_idle_is_replaced() -> None:
    """The server ends each connection after one answer without saying so; no request may fail for it."""

    def script(body: dict[str, object]) -> list[bytes | float]:
        return [*obedient()(body), b""]

    _, result = level_of(script, Level(30, concurrency=2))
    assert (result.succeeded, result.errors) == (30, {})


def test_nobody_listening_is_an_error_not_a_crash() -> None:
    async def run() -> Sample:
        return await Client("http://127.0.0.1:1").send("/v1/completions", b"{}")

    sample = asyncio.run(run())
    assert sample.error == "connect"
    assert "127.0.0.1:1" in sample.detail


def test_texts_are_calibrated_by_the_servers_usage() -> None:
    async def run(server: Scripted, client: Client) -> None:
        work = Workload("m", chat=True, ids=False, input=Length(105, 105), output=Length(1, 1))
        calibration = await calibrate(client, work)
        assert (calibration.per_word, calibration.fixed) == (2.0, 5.0)
        assert calibration.units(105) == 50

    against(obedient(), run)


def test_a_server_that_fails_the_warm_up_is_not_measured() -> None:
    async def run(_: Scripted, client: Client) -> None:
        with pytest.raises(HeadraceError, match=r"http 404.*no such model"):
            await warm_up(client, WORK, 2)

    against(lambda _: [json_answer(404, {"error": {"message": "no such model"}})], run)


def test_the_key_and_the_path_prefix_are_sent() -> None:
    async def session() -> None:
        async with scripted(obedient()) as server:
            client = Client(server.url + "/prefix/v1", api_key="k")
            await client.send("/v1/completions", WORK.body([1], 1))
            assert await client.get("/v1/models") == {"data": [{"id": "scripted"}]}
            client.close()
            assert server.heads[0].startswith("POST /prefix/v1/completions HTTP/1.1\r\n")
            assert "Authorization: Bearer k\r\n" in server.heads[0]

    asyncio.run(session())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", ""])
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not like"):
        Client(url)
