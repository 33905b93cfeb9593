"""Settings: where values come from, which are refused, and that three ways to say one agree."""

import inspect
from pathlib import Path

import pytest

from adapters_store.blob_place import BlobPlace
from server.cli_settings import human_bytes, takes_settings
from server.config import (
    Settings,
    SettingsError,
    about,
    flag_of,
    load_settings,
    parse_bytes,
    variable_of,
)
from server.engine.messages import EngineConfig


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)


def toml(folder: Path, text: str) -> dict[str, str]:
    (folder / "settings.toml").write_text(text)
    return {"config": str(folder / "settings.toml")}


def test_precedence_is_flag_environment_file_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = toml(tmp_path, "port = 1001\nmax_rank = 11\nthreads = 3\n")
    monkeypatch.setenv("ADAPTERD_PORT", "1002")
    monkeypatch.setenv("ADAPTERD_MAX_RANK", "12")
    settings = load_settings(flags | {"port": "1003"})
    assert (settings.port, settings.max_rank, settings.threads) == (1003, 12, 3)
    assert settings.max_sequences == 64


def test_config_file_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERD_CONFIG", toml(tmp_path, "port = 1001")["config"])
    assert load_settings({}).port == 1001


def typed_flags(**options: object) -> dict[str, str]:
    """What a command gets of its options."""
    received: list[dict[str, str]] = []

    def command(flags: dict[str, str]) -> None:
        received.append(flags)

    takes_settings()(command)(**options)
    return received[0]


def test_a_command_may_have_some_settings_and_options_of_its_own() -> None:
    received: list[object] = []

    def command(flags: dict[str, str], *, times: int = 3) -> None:
        received.append((flags, times))

    offered = takes_settings("model", "threads")(command)
    assert list(inspect.signature(offered).parameters) == ["times", "model", "threads"]
    offered(times=4, model="a", threads=None)
    assert received == [({"model": "a"}, 4)]


@pytest.mark.parametrize("field", sorted(Settings.model_fields.keys() - {"config"}))
def test_every_setting_is_a_flag_a_variable_and_a_key(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = about(field).example
    by_flag = load_settings(typed_flags(**{field: example}))

    by_file = load_settings(toml(tmp_path, f'{field} = "{example}"'))
    monkeypatch.setenv(variable_of(field), example)
    by_variable = load_settings({})
    values = {str(getattr(settings, field)) for settings in (by_flag, by_file, by_variable)}
    assert len(values) == 1
    assert values != {"None"}


def test_the_serve_command_has_exactly_the_settings() -> None:
    options = inspect.signature(takes_settings()(lambda flags: None)).parameters
    assert list(options) == list(Settings.model_fields)
    for name, option in options.items():
        typer_option = option.annotation.__metadata__[0]
        declared = (typer_option.default, *(typer_option.param_decls or ()))
        assert flag_of(name) in [name for flags in declared for name in str(flags).split("/")]
        assert typer_option.help.startswith(about(name).help)


def test_every_setting_is_explained() -> None:
    for field in Settings.model_fields:
        assert about(field).help.endswith(".")
        assert about(field).group in ("Model", "Server", "Adapters", "Engine")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1024", 1024),
        ("512MiB", 512 << 20),
        ("4GB", 4_000_000_000),
        ("1.5 kib", 1536),
        ("0.5TiB", 1 << 39),
        (7, 7),
    ],
)
def test_sizes(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "MiB", "12 bananas", "1e9", "-5", "5GiB!", "1.2.3GB", True, None]
)
def test_sizes_refused(text: object) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_bytes(text)


def test_sizes_are_printed_as_they_are_typed() -> None:
    for count in (1, 1000, 1536, 512 << 20, 1 << 30, 3 << 40):
        assert parse_bytes(human_bytes(count)) == count


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"port": "x"}, ("--port x", "--port 8000")),
        ({"port": "65536"}, ("--port 65536", "65535")),
        ({"dtype": "int4"}, ("--dtype int4", "bfloat16")),
        ({"quantization": "int4"}, ("--quantization int4", "--quantization int8")),
        ({"kv_cache_bytes": "lots"}, ("--kv-cache-bytes lots", "512MiB")),
        ({"max_upload_bytes": "0"}, ("--max-upload-bytes 0", "greater than 0")),
        ({"drain_seconds": "nan"}, ("--drain-seconds nan", "integer")),
        ({"device": "tpu"}, ("--device tpu", "cuda")),
        ({"threads": "0"}, ("--threads 0", "1")),
        ({"prefix_cache": "maybe"}, ("--prefix-cache maybe", "boolean", ": --no-prefix-cache")),
    ],
)
def test_a_bad_flag_is_one_line_with_the_remedy(
    flags: dict[str, str], names: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in names), message


@pytest.mark.parametrize("set_by", ["flag", "variable", "file"])
def test_a_refused_url_is_told_without_its_password(
    set_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "mysql://me:hu sh@host/db"
    flags = {"catalog": url} if set_by == "flag" else {}
    if set_by == "variable":
        monkeypatch.setenv("ADAPTERD_CATALOG", url)
    if set_by == "file":
        flags = toml(tmp_path, f"catalog = '{url}'")
    with pytest.raises(SettingsError, match=r"mysql://me:.*postgresql://") as refused:
        load_settings(flags)
    assert "hu sh" not in str(refused.value)


def test_a_bad_variable_and_a_bad_key_are_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = toml(tmp_path, "port = 0\nmax_rank = -3\n")
    with pytest.raises(SettingsError, match=r"max_rank = -3 in .*settings\.toml"):
        load_settings(flags)
    monkeypatch.setenv("ADAPTERD_MAX_RANK", "many")
    with pytest.raises(SettingsError, match="ADAPTERD_MAX_RANK=many"):
        load_settings(flags)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "prot .* Did you mean port"),
        ("colour = 1", "colour .* serve --help"),
        ("config = 'x'", "config"),
        ("port 8000", "not TOML"),
        ("[server]\nport = 1", "server"),
    ],
)
def test_a_bad_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(toml(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({"config": str(tmp_path / "none.toml")})


def test_a_misspelt_variable_is_refused_and_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTERD_SERVER", "http://elsewhere")
    monkeypatch.setenv("ADAPTERD_PORT_80_TCP_ADDR", "10.0.0.1")  # as Kubernetes sets for a service
    monkeypatch.setenv("ADAPTERD_PORT", "")  # empty: not set
    assert load_settings({}).port == 8000
    monkeypatch.setenv("ADAPTERD_MAX_RANKS", "16")
    with pytest.raises(SettingsError, match="Did you mean ADAPTERD_MAX_RANK"):
        load_settings({})


@pytest.mark.parametrize(("given", "wanted"), [(True, True), (False, False), (None, True)])
def test_a_switch_takes_no_value(given: bool | None, wanted: bool, tmp_path: Path) -> None:
    settings = load_settings(typed_flags(prefix_cache=given))
    assert settings.engine_config(model="m", blobs=BlobPlace(str(tmp_path))).prefix_cache == wanted


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("/a", ("/a",)),
        ("/a:/b", ("/a", "/b")),
        ("~/a", (str(Path.home() / "a"),)),
        (["/a", "/b"], ("/a", "/b")),
        ([], ()),
    ],
)
def test_roots_are_typed_as_paths_are(
    typed: str | list[str], wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = tuple(map(Path, wanted))
    assert load_settings(typed_flags(adapter_root=typed)).adapter_root == roots
    assert load_settings(toml(tmp_path, f"adapter_root = {typed!r}")).adapter_root == roots
    if isinstance(typed, str):
        monkeypatch.setenv("ADAPTERD_ADAPTER_ROOT", typed)
        assert load_settings({}).adapter_root == roots


def test_base_name(tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    assert load_settings({}).base_name == "adapterd-demo"
    assert load_settings({"model": "Qwen/Qwen3-0.6B"}).base_name == "Qwen/Qwen3-0.6B"
    assert load_settings({"model": f"{tmp_path}/my-base/"}).base_name == "my-base"
    named = load_settings({"model": str(tmp_path), "served_model_name": "other"})
    assert named.base_name == "other"


def test_the_engine_gets_its_slice_and_agrees_on_defaults(tmp_path: Path) -> None:
    defaults = load_settings({"model": "m"}).engine_config(
        model="m", blobs=BlobPlace(str(tmp_path))
    )
    assert defaults == EngineConfig(model="m", blobs=str(tmp_path))
    told = load_settings(
        {"max_rank": "8", "kv_cache_bytes": "1MiB", "slot_bytes": "2MiB", "threads": "2"}
    )
    config = told.engine_config(model="m", blobs=BlobPlace(str(tmp_path)))
    assert (config.max_rank, config.kv_cache_bytes, config.threads) == (8, 1 << 20, 2)
    assert config.slot_bytes == 2 << 20
    place = BlobPlace("s3://bucket", cache="/var/cache", cache_bytes=7)
    config = told.engine_config(model="m", blobs=place)
    told_place = BlobPlace(config.blobs, config.blob_cache, config.blob_cache_bytes)
    assert told_place == place


def test_the_data_directory_does_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings({}).data_dir == tmp_path / "adapterd"
    assert load_settings({"data_dir": "~/x"}).data_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("given", "dtype"),
    [({}, "float32"), ({"model": "x"}, "auto"), ({"dtype": "bfloat16"}, "bfloat16")],
)
def test_the_demo_is_served_in_float32(tmp_path, given, dtype):
    config = load_settings(given).engine_config(model="m", blobs=BlobPlace(str(tmp_path)))
    assert config.dtype == dtype
