"""Settings: precedence, sources, and every bad value refused by name."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import (
    SECTIONS,
    BatchSettings,
    CacheSettings,
    Config,
    MachineSettings,
    ServerSettings,
    knobs,
    load,
    size,
)
from headrace.errors import ConfigError


def loaded(given: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None) -> Config:
    return load(given or {}, env=env or {})


def test_defaults_build_every_section() -> None:
    config = loaded()
    for section in SECTIONS:
        assert isinstance(config.section(section), section)
    assert config.section(ServerSettings).port == 8000
    assert config.section(BatchSettings).enable_prefix_caching is True
    assert {item.source for item in config.settings.values()} == {"default"}


def test_names_are_unique_over_all_sections() -> None:
    names = [name for section in SECTIONS for name, _, _ in knobs(section)]
    assert len(names) == len(set(names))


def test_sections_are_frozen() -> None:
    server = loaded().section(ServerSettings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        server.port = 1  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("where", list(itertools.product([False, True], repeat=3)))
def test_precedence_is_argv_env_file_default(tmp_path: Path, where: tuple[bool, bool, bool]) -> None:
    on_argv, in_env, in_file = where
    file = tmp_path / "headrace.toml"
    file.write_text("port = 3\n" if in_file else "")
    given = {"config": str(file)} | ({"port": "1"} if on_argv else {})
    config = loaded(given, {"HEADRACE_PORT": "2"} if in_env else {})
    expected = 1 if on_argv else 2 if in_env else 3 if in_file else 8000
    source = ["default", f"file {file}", "environment HEADRACE_PORT", "command line"]
    assert config.section(ServerSettings).port == expected
    assert config.settings["port"].source == source[(8000, 3, 2, 1).index(expected)]


def test_a_file_takes_toml_types_and_either_spelling(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(
        'model = "some/where"\nmax-num-seqs = 7\nenable_prefix_caching = false\nkv_cache_memory = "2GiB"\n'
        'served-model-name = ["a", "b"]\nrequest_timeout = 1.5\nthreads = "auto"\n'
    )
    config = loaded(env={"HEADRACE_CONFIG": str(file)})
    assert config.section(BatchSettings) == BatchSettings(
        max_num_seqs=7, enable_prefix_caching=False, kv_cache_memory=2 << 30
    )
    assert config.section(ServerSettings).served_model_name == ("a", "b")
    assert config.section(ServerSettings).request_timeout == 1.5
    assert config.section(MachineSettings).threads is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "65536", "above the most allowed, 65535"),
        ("port", "-1", "below the least allowed, 0"),
        ("port", "80.5", "not a whole number"),
        ("port", "1e3", "not a whole number"),
        ("port", "", "not a whole number"),
        ("port", "9" * 5000, "not a whole number"),
        ("dtype", "float16", "not one of auto, bfloat16, float32"),
        ("isa", "sse2", "not one of auto, amx"),
        ("max_num_seqs", "0", "below the least allowed, 1"),
        ("max_num_seqs", "true", "not a whole number"),
        ("request_timeout", "nan", "not a number"),
        ("request_timeout", "-1", "below the least allowed, 0 seconds"),
        ("enable_prefix_caching", "maybe", "neither true nor false"),
        ("kv_cache_memory", "4 gigs", "not a size"),
        ("kv_cache_memory", "1kB", "below the least allowed"),
        ("host", " ", "is empty"),
    ],
)
def test_a_bad_value_names_setting_source_and_limit(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(env={f"HEADRACE_{name.upper()}": value})
    message = str(caught.value)
    assert message.startswith(f"{name} (environment HEADRACE_{name.upper()}): ")
    assert words in message
    with pytest.raises(ConfigError, match=rf"^{name} \(command line\): "):
        loaded({name: value})


@pytest.mark.parametrize("text", ["port = [1, 2]", "port = {a = 1}", "port = 1979-05-27"])
def test_a_list_or_table_for_one_value_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"port \(file .*\): takes one value"):
        loaded({"config": str(file)})


def test_unknown_names_are_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HEADRACE_MAX_NUM_SEQ \(environment\).*did you mean max_num_seqs"):
        loaded(env={"HEADRACE_MAX_NUM_SEQ": "4"})
    file = tmp_path / "bad.toml"
    file.write_text("[server]\nport = 1\n")
    with pytest.raises(ConfigError, match=rf"server \(file {file}\): no such setting"):
        loaded({"config": str(file)})


def test_unreadable_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml"):
        loaded({"config": str(tmp_path / "missing.toml")})
    file = tmp_path / "bad.toml"
    for content in (b"port = ", b"\xff\xfe", b"port = 1\nport = 2\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="is not TOML in UTF-8"):
            loaded({"config": str(file)})


def test_what_kubernetes_writes_beside_a_service_is_nobodys_setting() -> None:
    env = {
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "8000",
        "HEADRACE_SERVICE_PORT_HTTP": "8000",
        "HEADRACE_PORT": "tcp://10.0.0.1:8000",
        "HEADRACE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "HEADRACE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert loaded(env=env).settings["port"].source == "default"
    assert loaded(env=env | {"HEADRACE_PORT": "81"}).section(ServerSettings).port == 81


def test_secrets_are_masked_everywhere() -> None:
    config = loaded(env={"HEADRACE_API_KEY": "hunter2, hunter3"})
    assert config.section(ServerSettings).api_key == ("hunter2", "hunter3")
    assert config.settings["api_key"].shown() == "******"
    with pytest.raises(ConfigError) as caught:
        loaded({"api_key": [" "]})
    assert "empty" in str(caught.value)
    assert all("hunter" not in item.shown() for item in config.settings.values())


def test_the_cache_directory_follows_xdg() -> None:
    assert loaded(env={"XDG_CACHE_HOME": "/x"}).section(CacheSettings).cache_dir == Path("/x/headrace")
    assert loaded().section(CacheSettings).cache_dir == Path("~/.cache/headrace").expanduser()
    given = loaded({"cache_dir": "/y"}, {"XDG_CACHE_HOME": "/x"})
    assert given.section(CacheSettings).cache_dir == Path("/y")


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["", "B", "kB", "K", "KiB", "MB", "MiB", "G", "GiB", "TiB"]))
def test_sizes_are_exact(amount: int, unit: str) -> None:
    power = "BKMGT".index(unit[:1].upper() or "B")
    assert size(f"{amount}{unit}") == amount * (1024 if "i" in unit else 1000) ** power


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_config_error(value: str) -> None:
    for name in loaded().settings:
        try:
            loaded({name: value})
        except ConfigError as error:
            assert name in str(error)  # noqa: PT017  (the message is the contract, and success is fine too)
