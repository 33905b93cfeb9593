"""Every setting, once: its name, type, bounds, default, group and help text.

Here: Settings, read from flags > ADAPTERD_* environment > TOML file > defaults, and the frozen
slice that the engine is given. The command line builds its options from these fields. Not here:
reading anything else from the environment, starting anything; no import of torch.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic.config import JsonDict
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from adapters_store.urls import without_secrets

if TYPE_CHECKING:  # they bring torch: too slow for --help
    from adapters_store.blob_place import BlobPlace
    from server.engine.messages import EngineConfig

ENV_PREFIX = "ADAPTERD_"
DEMO_NAME = "adapterd-demo"
OTHER_VARIABLES = (
    "server",
    "test_all",
    "data",
)  # ADAPTERD_… names that are no settings of the server

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{unit}b": 1000**power for power, unit in enumerate("kmgt", start=1)}
_UNITS |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", start=1)}


class SettingsError(Exception):
    """A setting cannot be used; one line that names it, where it was set, and the remedy."""


def parse_bytes(value: object) -> int:
    """Bytes from 1024, "1024", "512MiB" (×1024²) or "4 GB" (×1000³). Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip().lower())
    if not match or match[2] not in _UNITS:
        raise ValueError("a size in bytes is wanted, such as 512MiB, 4GB or 1073741824")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_paths(value: object) -> tuple[Path, ...]:
    """Paths from "/a:/b", as $PATH has them, or from a list of paths, each for itself."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(os.pathsep)
    return tuple(Path(str(part)).expanduser() for part in parts if str(part))


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/adapterd, the same from any working directory and outside any checkout.

    So a server started elsewhere tomorrow, or from a fresh clone, still has its adapters.
    """
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "adapterd"


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
ExpandedPath = Annotated[Path, BeforeValidator(lambda value: Path(str(value)).expanduser())]
# NoDecode: a variable holds paths as they are typed, not JSON.
ExpandedPaths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(parse_paths)]


def _setting(default: Any, group: str, help_text: str, *, example: str, **bounds: Any) -> Any:
    """A field with what --help and error messages need: its group and a value that works."""
    how = {"default_factory" if callable(default) else "default": default}
    extra: JsonDict = {"group": group, "example": example}
    return Field(**how, **bounds, description=help_text, json_schema_extra=extra)


class Settings(BaseSettings):
    """What `adapterd serve` is told. Frozen: parts get it, or a slice of it, at construction."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    # --- Model
    model: str | None = _setting(
        None,
        "Model",
        "Base model: a folder in Hugging Face layout or a hub id. Default: the embedded demo.",
        example="Qwen/Qwen3-0.6B",
        min_length=1,
    )
    served_model_name: str | None = _setting(
        None,
        "Model",
        "Name that requests use for the base. Default: the hub id, or the folder's last part.",
        example="my-base",
        min_length=1,
        max_length=256,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto",
        "Model",
        "Number format of the weights; auto: as stored, float32 for the demo.",
        example="bfloat16",
    )
    quantization: Literal["none", "int8"] = _setting(
        "none",
        "Model",
        "int8: linear modules' weights are rounded to 8 bits, one scale for each output: half of "
        "bfloat16's memory, slightly other answers. Adapters stay as they are. Native CPU kernels "
        "only.",
        example="int8",
    )
    device: str = _setting(
        "auto", "Model", "cpu, cuda, cuda:1, …; auto: cuda where there is one.", example="cpu"
    )
    max_model_len: int | None = _setting(
        None,
        "Model",
        "Longest prompt + answer in tokens. Default: the base's own limit.",
        example="4096",
        ge=16,
    )

    # --- Server
    host: str = _setting(
        "127.0.0.1",
        "Server",
        "Address to listen on. There is no authentication yet: keep it on loopback, or behind "
        "something that has it.",
        example="127.0.0.1",
        min_length=1,
    )
    port: int = _setting(
        8000, "Server", "Port to listen on; 0: any free one.", example="8000", ge=0, le=65535
    )
    data_dir: ExpandedPath = _setting(
        default_data_dir,
        "Server",
        "Folder that keeps uploaded adapters and their catalog, unless --store and --catalog name "
        "other places.",
        example="/var/lib/adapterd",
    )
    store: str | None = _setting(
        None,
        "Server",
        "Where adapters' files rest: a folder, or a URL such as s3://bucket/prefix, which several "
        "servers may share. Default: store in --data-dir.",
        example="s3://my-bucket/adapters",
        min_length=1,
    )
    store_cache_bytes: Bytes = _setting(
        10 << 30,
        "Server",
        "Disk space in --data-dir for copies of adapters from a --store that is a URL.",
        example="50GiB",
    )
    catalog: str | None = _setting(
        None,
        "Server",
        "Database of adapters' names and versions, as a URL such as postgresql://user@host/name, "
        "which several servers may share. Default: SQLite in --data-dir.",
        example="postgresql://adapterd@db.internal/adapterd",
        min_length=1,
    )
    max_concurrent_requests: int = _setting(
        256,
        "Server",
        "Requests taken at once, waiting ones included; more are refused until one ends.",
        example="256",
        ge=1,
    )
    max_upload_bytes: Bytes = _setting(
        1 << 30, "Server", "Largest adapter upload.", example="512MiB"
    )
    drain_seconds: int = _setting(
        30, "Server", "On SIGTERM, time that running requests have to finish.", example="30", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Server", "Least severe log lines shown.", example="debug"
    )
    config: ExpandedPath | None = _setting(
        None,
        "Server",
        "TOML file of settings, keys as the flags with _ for -. Flags and environment win.",
        example="adapterd.toml",
    )

    # --- Adapters
    max_resident_adapters: int = _setting(
        8,
        "Adapters",
        "Adapters on the device at once, at most; others wait in the host cache or on disk.",
        example="16",
        ge=1,
        le=4096,
    )
    slot_bytes: Bytes | None = _setting(
        None,
        "Adapters",
        "Memory that adapters on the device share, each taking what its rank needs. Default: room "
        "for --max-resident-adapters of rank 64, or of --max-rank.",
        example="512MiB",
    )
    max_rank: int | None = _setting(
        None,
        "Adapters",
        "Largest LoRA rank accepted. Default: what fits into the slots' memory.",
        example="128",
        ge=1,
    )
    host_cache_bytes: Bytes = _setting(
        1 << 30, "Adapters", "Memory for adapters kept ready off the device.", example="2GiB"
    )
    adapter_root: ExpandedPaths = _setting(
        (),
        "Adapters",
        "Folder whose adapters load calls may name; links that lead out of it are refused. "
        "Several: give it again, or separate them with colons. Default: none, so that no path is "
        "read.",
        example="/srv/adapters",
    )
    adapter_hub: bool = _setting(
        False,
        "Adapters",
        "Let load calls name adapters of the Hugging Face hub, which this server then fetches with "
        "its own token, if it has one.",
        example="true",
    )
    eviction: Literal["lru", "lfu", "cost"] = _setting(
        "lru",
        "Adapters",
        "Which adapter leaves a full tier: the least recently used; lfu: the least often used of "
        "late; cost: the one whose use, size and loading time are least worth the room.",
        example="cost",
    )

    # --- Engine
    kv_cache_bytes: Bytes | None = _setting(
        None,
        "Engine",
        "Memory for the KV cache. Default: sized from what is free.",
        example="512MiB",
    )
    prefix_cache: bool = _setting(
        True,
        "Engine",
        "Keep what prompts and answers have in the KV cache for requests that begin alike, under "
        "the same adapter version and cache_salt. --no-prefix-cache: compute every prompt whole.",
        example="false",
    )
    max_batch_tokens: int = _setting(
        512, "Engine", "Tokens per forward pass, over all sequences.", example="1024", ge=1
    )
    max_sequences: int = _setting(
        64, "Engine", "Sequences generated at once; more wait.", example="128", ge=1
    )
    max_prefill_slowdown: float = _setting(
        1.8,
        "Engine",
        "While one prompt is read, running streams wait about so many times as long for a token, "
        "at most; each further prompt adds as much again. Chunks are cut to fit, by how long steps "
        "took so far.",
        example="1.5",
        ge=1,
        le=1000,
    )
    speculative_tokens: int = _setting(
        0,
        "Engine",
        "Tokens guessed per sequence and forward pass, at most, from what its prompt and answer "
        "repeat; each is checked before it counts. 0: none.",
        example="8",
        ge=0,
        le=64,
    )
    threads: int | None = _setting(
        None, "Engine", "CPU threads for tensor work. Default: torch's choice.", example="4", ge=1
    )
    kernels: Literal["auto", "torch"] = _setting(
        "auto",
        "Engine",
        "auto: the native CPU kernels where they are built, Triton on CUDA; torch: neither.",
        example="torch",
    )

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("auto, cpu, cuda or cuda:N is wanted")
        return value

    @field_validator("catalog")
    @classmethod
    def _catalog_is_known(cls, value: str | None) -> str | None:
        known = r"(postgres|postgresql|postgresql\+psycopg)://.|sqlite:///."
        if value is not None and not re.match(known, value):
            raise ValueError("a URL is wanted that begins with postgresql:// or sqlite:///")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, then the TOML file that either of them names."""
        path = init_settings().get("config") or env_settings().get("config")
        if path is None:
            return init_settings, env_settings
        toml = TomlConfigSettingsSource(settings_cls, toml_file=Path(str(path)).expanduser())
        return init_settings, env_settings, toml

    @property
    def base_name(self) -> str:
        """What requests call the base."""
        if self.served_model_name:
            return self.served_model_name
        if self.model is None:
            return DEMO_NAME
        folder = Path(self.model).expanduser()
        return folder.resolve().name if folder.is_dir() else self.model

    def engine_config(self, *, model: str, blobs: "BlobPlace") -> "EngineConfig":
        """The engine's slice. `model` is the folder or hub id after the demo is resolved."""
        from server.engine.messages import EngineConfig

        return EngineConfig(
            model=model,
            blobs=blobs.url,
            blob_cache=blobs.cache,
            blob_cache_bytes=blobs.cache_bytes,
            # So small a base is as fast in float32, and its answers are then the same everywhere.
            dtype="float32" if self.model is None and self.dtype == "auto" else self.dtype,
            quantization=self.quantization,
            device=self.device,
            max_resident_adapters=self.max_resident_adapters,
            max_rank=self.max_rank,
            slot_bytes=self.slot_bytes,
            max_model_len=self.max_model_len,
            kv_cache_bytes=self.kv_cache_bytes,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=self.max_sequences,
            max_prefill_slowdown=self.max_prefill_slowdown,
            speculative_tokens=self.speculative_tokens,
            prefix_cache=self.prefix_cache,
            host_cache_bytes=self.host_cache_bytes,
            eviction=self.eviction,
            threads=self.threads,
            kernels=self.kernels,
        )


@dataclass(frozen=True, slots=True)
class About:
    """What is said of a field besides its type."""

    group: str  # heading in --help
    help: str
    example: str  # a value that works


def about(field: str) -> About:
    """What --help and error messages say of a field."""
    info = Settings.model_fields[field]
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    return About(str(extra["group"]), info.description or "", str(extra["example"]))


def is_byte_size(field: str) -> bool:
    """Whether sizes such as 512MiB are taken."""
    return field.endswith("_bytes")


def is_repeatable(field: str) -> bool:
    """Whether its flag may be given several times."""
    return get_origin(Settings.model_fields[field].annotation) is tuple


def is_switch(field: str) -> bool:
    """Whether its flag takes no value, and has a twin that says no."""
    return Settings.model_fields[field].annotation is bool


def flag_of(field: str) -> str:
    """ "data_dir" → "--data-dir"."""
    return "--" + field.replace("_", "-")


def off_flag_of(field: str) -> str:
    """ "prefix_cache" → "--no-prefix-cache"."""
    return "--no-" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """ "data_dir" → "ADAPTERD_DATA_DIR"."""
    return ENV_PREFIX + field.upper()


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from `flags` (field → value as typed), the environment and the TOML file.

    Raises SettingsError for the first thing that is wrong.
    """
    _refuse_misspelt_variables(os.environ)
    config_file = flags.get("config") or os.environ.get(variable_of("config"))
    in_file = _toml_keys(Path(str(config_file)).expanduser()) if config_file else frozenset()
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise SettingsError(_explain(error, flags, in_file, str(config_file))) from None


def _toml_keys(path: Path) -> frozenset[str]:
    """The file's top-level keys, all of them settings. Raises SettingsError."""
    try:
        keys = frozenset(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise SettingsError(f"--config {path}: {reason}. Name a readable TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f'--config {path}: not TOML: {error}. Lines look like: port = 8000, or model = "name".'
        ) from None
    for key in sorted(keys - (Settings.model_fields.keys() - {"config"})):
        raise SettingsError(f"{key} in {path} is not a setting.{_did_you_mean(key)}")
    return keys


def _refuse_misspelt_variables(environ: Mapping[str, str]) -> None:
    """A near miss would be ignored in silence; names far from any setting are others' affair."""
    for name in sorted(environ):
        field = name.removeprefix(ENV_PREFIX).lower()
        if not name.startswith(ENV_PREFIX) or field in OTHER_VARIABLES:
            continue
        if field not in Settings.model_fields and (near := _nearest(field)):
            raise SettingsError(f"{name} is not a setting. Did you mean {variable_of(near)}?")


def _nearest(key: str) -> str | None:
    return next(iter(difflib.get_close_matches(key, list(Settings.model_fields), 1, 0.75)), None)


def _did_you_mean(key: str) -> str:
    near = _nearest(key)
    return f" Did you mean {near}?" if near else " `adapterd serve --help` lists them all."


def _explain(
    error: ValidationError, flags: Mapping[str, Any], in_file: frozenset[str], path: str
) -> str:
    """The first problem in one line: which setting, set where, what is wrong, what would work.

    Without passwords: a URL that is refused may have one.
    """
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0])
    if field in flags:
        where = f"{flag_of(field)} {flags[field]}"
    elif os.environ.get(variable_of(field)):
        where = f"{variable_of(field)}={os.environ[variable_of(field)]}"
    else:
        where = f"{field} = {problem['input']!r} in {path}" if field in in_file else field
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    example = off_flag_of(field) if is_switch(field) else f"{flag_of(field)} {about(field).example}"
    return f"{without_secrets(where)}: {reason}. For example: {example}"
