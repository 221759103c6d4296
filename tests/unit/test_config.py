"""Behaviour of `kvtier.config`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import AgentConfig, format_size, load_config, parse_size
from kvtier.config.load import config_keys
from kvtier.core.rules import Amount
from kvtier.errors import ConfigError
from kvtier.tiers.cluster.url import parse_url


@pytest.fixture
def agent_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text("")
    return path


def refusal(path: Path, environ: dict[str, str] | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {}, overrides)
    return str(caught.value)


def test_an_empty_file_leaves_every_default(agent_yaml: Path) -> None:
    loaded = load_config(agent_yaml, {"XDG_RUNTIME_DIR": "/run/user/7"}, ())
    assert loaded.config.tiers.host.capacity == 2**30
    assert set(loaded.origin.values()) == {"default"}
    assert tuple(loaded.origin) == config_keys()


def test_later_sources_win_and_are_named(agent_yaml: Path) -> None:
    agent_yaml.write_text("movers: 3\nlog: {level: debug, format: json}\ntiers:\n")
    environ = {"KVTIER_MOVERS": "4", "KVTIER_LOG__LEVEL": "error"}
    loaded = load_config(agent_yaml, environ, ["movers=5"])
    assert loaded.config.movers == 5
    assert loaded.origin["movers"] == "--set"
    assert loaded.config.log.level == "error"
    assert loaded.origin["log.level"] == "KVTIER_LOG__LEVEL"
    assert loaded.config.log.format == "json"
    assert loaded.origin["log.format"] == f"file {agent_yaml}"


def test_the_environment_names_the_file(agent_yaml: Path) -> None:
    agent_yaml.write_text("movers: 7")
    assert load_config(None, {"KVTIER_CONFIG": str(agent_yaml)}, ()).config.movers == 7


def test_variables_of_others_are_skipped(agent_yaml: Path) -> None:
    environ = {
        "KVTIER_ADDRESS": "unix:/x",
        "KVTIER_PORT_50051_TCP_ADDR": "10.0.0.1",
        "KVTIER_AGENT_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    assert set(load_config(agent_yaml, environ, ()).origin.values()) == {"default"}


def test_lists_are_written_as_yaml_in_the_environment(agent_yaml: Path) -> None:
    environ = {"KVTIER_WORKERS": "[{uid: 1000, tenants: [team-a]}, {gid: 7}]"}
    first, second = load_config(agent_yaml, environ, ()).config.workers
    assert (first.uid, first.tenants) == (1000, ("team-a",))
    assert (second.gid, second.tenants) == (7, ("*",))


def test_an_unknown_key_is_refused_with_its_line_and_the_closest_key(agent_yaml: Path) -> None:
    agent_yaml.write_text("log:\n  levle: debug\n")
    message = refusal(agent_yaml)
    assert f"{agent_yaml}, line 2" in message
    assert "unknown key log.levle; did you mean log.level?" in message


def test_an_unknown_variable_is_refused_with_the_allowed_keys(agent_yaml: Path) -> None:
    message = refusal(agent_yaml, {"KVTIER_TIERS__HOST__ZZZ": "1"})
    assert "KVTIER_TIERS__HOST__ZZZ: unknown key tiers.host.zzz" in message
    assert "in tiers.host are admission, auto, capacity, memory_reserve, policy" in message


def test_a_value_for_a_section_is_refused(agent_yaml: Path) -> None:
    agent_yaml.write_text("tiers: {host: 4GiB}")
    assert "tiers.host = '4GiB' is not allowed: it is a section" in refusal(agent_yaml)


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("tiers.host.capacity=1GB", "write 64GiB"),
        ("tiers.host.capacity=1KiB", "at least 1MiB"),
        ("tiers.host.memory_reserve=-1", "at least 0"),
        ("tiers.host.capacity=0.3B", "whole number of bytes"),
        ("tiers.host.capacity=true", "not a size"),
        ("tiers.host.policy=fifo", "write one of lru, s3fifo"),
        ("tiers.host.policy=kvtier.missing:Lru", "cannot be imported"),
        ("tiers.host.policy=kvtier.core.policies.base:ALWAYS", "is no class"),
        ("tiers.host.policy=kvtier.core.policies.base:Context", "has no ask"),
        ("tiers.host.admission=never", "'always', 'second_hit' or 'cold_first_turn'"),
        ("tiers.disk.paths=a", "write an absolute path"),
        ("tiers.disk.paths=[/a, 5]", "write an absolute path"),
        ("tiers.disk.paths=/a/../b", "without .."),
        ("tiers.disk.paths=/a,", "write an absolute path"),
        ("tiers.disk.paths=5", "write a list of absolute paths, [] for none"),
        ("tiers.disk.paths=", "write a list of absolute paths, [] for none"),
        ("tiers.disk.paths=[/a, /b, /a/]", "/a is named twice"),
        ("tiers.disk.paths=[/a/b, /c, /a]", "/a/b is inside /a"),
        ("tiers.disk.paths=[/, //a]", "/a is inside /"),
        ("tiers.disk.capacity=15MiB", "at least 16MiB"),
        ("tiers.disk.policy=fifo", "write one of lru, s3fifo"),
        ("tiers.disk.write_policy=back", "'through', 'on_evict' or 'after_hits'"),
        ("tiers.disk.write_after_hits=0", "greater than or equal to 1"),
        ("tiers.disk.min_free=-1", "at least 0"),
        ("tiers.disk.io_depth=65", "less than or equal to 64"),
        ("tiers.disk.io_timeout=0", "greater than 0"),
        ("tiers.disk.max_in_flight=4KiB", "at least 1MiB"),
        ("tiers.disk.scrub_rate=0", "at least 1MiB"),
        ("tiers.cluster.url=http://h", "write redis://HOST:PORT"),
        ("tiers.cluster.url=5", "a valid string"),
        ("tiers.cluster.password_file=a", "write an absolute path"),
        ("tiers.cluster.password_env=a-b", "the name of a variable"),
        ("tiers.cluster.tls_ca=5", "write an absolute path"),
        ("tiers.cluster.key_prefix='a{b}'", "letters, digits, . _ : and -, at most 64"),
        ("tiers.cluster.ttl=0", "greater than or equal to 1"),
        ("tiers.cluster.ttl=1.5", "an integer"),
        ("tiers.cluster.write_policy=back", "'through', 'on_evict' or 'after_hits'"),
        ("tiers.cluster.write_after_hits=0", "greater than or equal to 1"),
        ("tiers.cluster.connections=65", "less than or equal to 64"),
        ("tiers.cluster.timeout=0", "greater than 0"),
        ("tiers.cluster.lookup_timeout=0", "greater than 0"),
        ("tiers.cluster.max_in_flight=4KiB", "at least 1MiB"),
        ("tiers.cluster.hit_seconds=-1", "greater than or equal to 0"),
        ("tiers.cluster.miss_seconds=.inf", "finite"),
        ("tiers.cluster.codec=zstd", "'none' or 'planes_lz4'"),
        ("tiers.cluster.codecs={default/m: lz4}", "'none' or 'planes_lz4'"),
        ("tiers.cluster.codecs={m: none}", "'m' is no namespace; write tenant/name: codec"),
        ("tiers.cluster.embedded_capacity=1MiB", "at least 16MiB"),
        ("tiers.cluster.heartbeat=3601", "less than or equal to 3600"),
        ("tiers.cluster.node_name=a b", "letters, digits, . _ and -, at most 64"),
        ("pins.max_share=1.5", "less than or equal to 1"),
        ("pins.max_namespace_share=0", "greater than 0"),
        ("pins.max_seconds=1.0e+9", "less than or equal to 315360000"),
        ("pins.max_pins=0", "greater than or equal to 1"),
        ("namespaces={a: {}}", "'a' names no namespaces; write tenant/name, tenant/* or *"),
        ("namespaces={a/*: {ttl: 0.5}}", "greater than or equal to 1"),
        ("namespaces={a/*: {gpu: {}}}", "unknown key"),
        ("namespaces={a/*: {host: {limit: 101%}}}", "a share is at most 100%"),
        ("namespaces={a/*: {disk: {limit: half}}}", "a share of the tier as 30%, or a size"),
        ("namespaces={a/*: {host: {limit: 10%, guaranteed: 20%}}}", "may not exceed limit (10%)"),
        ("namespaces={a/*: {host: {limit: 10%, guaranteed: 1GiB}}}", "exceeds its limit (10%)"),
        (
            "namespaces={a/*: {host: {guaranteed: 60%}}, b/*: {host: {guaranteed: 512MiB}}}",
            "with b/*.host.guaranteed (512MiB) more is guaranteed (",
        ),
        ("movers=0", "greater than or equal to 1"),
        ("movers=65", "less than or equal to 64"),
        ("movers=yes", "an integer"),
        ("movers='2'", "an integer"),
        ("layout_conflict=ignore", "'warn' or 'reject'"),
        ("limits.max_batch_blocks=65537", "less than or equal to 65536"),
        ("leases.max_share=1.5", "less than or equal to 1"),
        ("leases.max_share=0", "greater than 0"),
        ("leases.default_seconds=.nan", "finite"),
        ("leases.default_seconds=90", "may not exceed max_seconds (60)"),
        ("socket_group=true", "a group's name, its gid, or null"),
        ("socket_dir=run/kvtier", "absolute path"),
        ("socket_dir=5", "write an absolute path"),
        (f"socket_dir=/{'x' * 95}", "1 too long for worker.sock"),
        ("workers=[{}]", "either uid or gid"),
        ("workers=[{uid: 1, gid: 2}]", "either uid or gid"),
        ("workers=[{uid: 1, tenants: [Team]}]", "lower-case letters, digits, . _ -, at most 63"),
        ("workers=[{uid: 1, tenant: a}]", "unknown key"),
        ("workers=1000", "a list"),
        ("tiers.gpu.devices=[{device: gpu0, capacity: 1GiB}]", "write cuda:0, xpu:1 "),
        ("tiers.gpu.devices=[{device: cuda, capacity: 1GiB}]", "write cuda:0, xpu:1 "),
        ("tiers.gpu.devices=[{device: cpu, capacity: 1KiB}]", "at least 1MiB"),
        ("tiers.gpu.devices=[{device: cpu}]", "capacity"),
        (
            "tiers.gpu.devices=[{device: cpu, capacity: 1GiB}, {device: cpu, capacity: 2GiB}]",
            "cpu is given twice",
        ),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(
    agent_yaml: Path, override: str, allowed: str
) -> None:
    message = refusal(agent_yaml, {}, override)
    assert message.startswith(f"--set {override}: {override.partition('=')[0].partition('.')[0]}")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("[/a, /b]", ["/a", "/b"]),
        ("/a,/b", ["/a", "/b"]),
        ("/a, /ab", ["/a", "/ab"]),
        ("//a/./b/", ["/a/b"]),
        ("[]", []),
    ],
)
def test_directories_are_a_list_or_text_with_commas(
    agent_yaml: Path, text: str, paths: list[str]
) -> None:
    expected = tuple(map(Path, paths))
    by_option = load_config(agent_yaml, {}, [f"tiers.disk.paths={text}"])
    assert by_option.config.tiers.disk.paths == expected
    by_variable = load_config(agent_yaml, {"KVTIER_TIERS__DISK__PATHS": text}, ())
    assert by_variable.config.tiers.disk.paths == expected
    agent_yaml.write_text(f"tiers: {{disk: {{paths: {text if '[' in text else repr(text)}}}}}")
    assert load_config(agent_yaml, {}, ()).config.tiers.disk.paths == expected


def test_a_directory_of_a_file_is_named_with_its_line(agent_yaml: Path) -> None:
    agent_yaml.write_text("tiers:\n  disk:\n    paths:\n      - /a\n      - b\n")
    assert refusal(agent_yaml) == (
        f"{agent_yaml}, line 5: tiers.disk.paths[1] = 'b' is not allowed: "
        "write an absolute path, without .."
    )


def test_every_directory_has_room(agent_yaml: Path) -> None:
    agent_yaml.write_text("tiers:\n  disk:\n    paths: [/a, /b, /c]\n    capacity: 32MiB\n")
    message = refusal(agent_yaml)
    assert message.startswith(f"{agent_yaml}, line 4: tiers.disk is not allowed: capacity (32MiB)")
    assert message.endswith("at least 16MiB for each of 3 paths, together 48MiB")


# Forms that are taken, then others; `kvtier.tiers.cluster.url` agrees.
URLS = [
    *("embedded", "redis://h", "redis://h:1/?db=3", "rediss://[::1]:7", "unix:///run/a%20b.sock"),
    *("redis+sentinel://a:1,b/m?db=2", "rediss+sentinel://a/m", "rediss+cluster://a:1,b:2"),
    *("redis://us%40er:p%2F%3A%23@h", "redis://:p@h", "unix://u:p@/run/r.sock?db=1"),
    *("redis+cluster://u:p@a:1,b:2", "redis://u@[::1]"),
]
NO_URLS = [
    *(
        "",
        "localhost:6379",
        "http://h",
        "redis://",
        "redis://h:0",
        "redis://h:x",
        "redis://a:1,b:2",
    ),
    *("redis://h/1", "redis://h?db=-1", "redis://h?ssl=true", "redis://h#1", "redis://::1:6379"),
    *("redis://[::1", "unix://relative", "unix:///", "unix://", "redis+sentinel://a:1"),
    *("redis+sentinel://a:1/m/n", "redis+cluster://a:1?db=1", "redis+cluster://a:1,,b:2"),
    *("redis://u:s3cret@h:x", "htp://u:s3cret@h", "redis://u:s3cret@", "embedded://"),
    "redis://u:s3cret\u2100@h",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_is_taken_can_be_taken_apart(agent_yaml: Path, url: str) -> None:
    config = load_config(agent_yaml, {"KVTIER_TIERS__CLUSTER__URL": repr(url)}, ()).config
    assert config.tiers.cluster.url == url
    parse_url(url)


@pytest.mark.parametrize("url", NO_URLS)
def test_a_url_that_cannot_be_taken_apart_is_refused(agent_yaml: Path, url: str) -> None:
    message = refusal(agent_yaml, {"KVTIER_TIERS__CLUSTER__URL": repr(url)})
    assert message.startswith("KVTIER_TIERS__CLUSTER__URL: tiers.cluster.url = ")
    with pytest.raises(ConfigError):
        parse_url(url)


@pytest.mark.parametrize(
    "override",
    [
        "tiers.cluster.url=redis://u:s3/cr@t@h:x",
        "tiers.cluster.url=redis:/u:s3/cr@t@h",
        "tiers.cluster.url=u:s3/cr@t@h",
        "tiers.cluster.url=redis://h?password=s3/cr@t",
        "tiers.cluster.url=redis://u:s3/cr@t@h: x",
        "tiers.cluster.url=[redis://u:s3/cr@t@h]",
        "tiers.cluster.ulr=redis://u:s3/cr@t@h",
        "tiers.cluster=redis://u:s3/cr@t@h",
        "tiers.cluster.password=s3/cr@t",
    ],
)
def test_no_error_shows_a_password(agent_yaml: Path, override: str) -> None:
    message = refusal(agent_yaml, {}, override)
    assert "tiers.cluster" in message
    assert "s3" not in message
    assert "t@h" not in message
    key, _, value = override.partition("=")
    agent_yaml.write_text(f"tiers: {{cluster: {{{key.removeprefix('tiers.cluster.')}: {value}}}}}")
    message = refusal(agent_yaml)
    assert "s3" not in message


def test_an_error_beside_a_password_does_not_show_it(agent_yaml: Path) -> None:
    override = "tiers.cluster.url=redis://u:s3cret@h"
    message = refusal(agent_yaml, {}, "tiers.cluster.tls_key=/k", override)
    assert message == (
        "--set tiers.cluster.url=redis://u:***@h: tiers.cluster is not allowed: "
        "tls_key needs tls_cert"
    )


def test_a_shown_url_has_no_password(agent_yaml: Path) -> None:
    override = "tiers.cluster.url=redis://u:s3cret@h:1"
    config = load_config(agent_yaml, {}, [override]).config
    assert config.tiers.cluster.url == "redis://u:s3cret@h:1"
    assert config.model_dump(mode="json")["tiers"]["cluster"]["url"] == "redis://u:***@h:1"
    assert "s3cret" not in f"{config!r} {config}"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["url=redis://:p@h", "password_env=P"], "the password is in url and in password_env"),
        (["password_file=/p", "password_env=P"], "in password_file and in password_env"),
        (["url=rediss://h", "tls_key=/k"], "tls_key needs tls_cert"),
        (["url=redis://h", "tls_ca=/ca"], "need a url that begins with rediss"),
        (["url=unix:///s", "tls_cert=/c"], "need a url that begins with rediss"),
    ],
)
def test_settings_of_the_cluster_that_do_not_go_together_are_refused(
    agent_yaml: Path, settings: list[str], complaint: str
) -> None:
    overrides = [f"tiers.cluster.{each}" for each in settings]
    assert complaint in refusal(agent_yaml, {}, *overrides)


def test_codecs_are_a_mapping(agent_yaml: Path) -> None:
    agent_yaml.write_text("tiers: {cluster: {codecs: {default/a: planes_lz4, b/c: none}}}")
    cluster = load_config(agent_yaml, {}, ()).config.tiers.cluster
    assert cluster.codecs == {"default/a": "planes_lz4", "b/c": "none"}
    by_variable = {"KVTIER_TIERS__CLUSTER__CODECS": "{default/a: planes_lz4}"}
    cluster = load_config(agent_yaml, by_variable, ()).config.tiers.cluster
    assert cluster.codecs == {"default/a": "planes_lz4"}


def test_rules_for_namespaces_are_in_their_order(agent_yaml: Path) -> None:
    agent_yaml.write_text(
        "namespaces:\n"
        "  a/b: {ttl: 60, host: {limit: 30%, guaranteed: 64MiB}}\n"
        "  a/*: {disk: {limit: 1GiB}}\n"
        "  '*': {}\n"
    )
    config = load_config(agent_yaml, {}, ()).config
    assert list(config.namespaces) == ["a/b", "a/*", "*"]
    first = config.namespaces["a/b"]
    assert first.ttl == 60
    assert first.host.limit == Amount(share=0.3)
    assert first.host.guaranteed == Amount(64 << 20)
    shown = config.model_dump(mode="json")["namespaces"]["a/b"]
    assert shown["host"] == {"limit": "30%", "guaranteed": "64MiB"}
    assert shown["disk"] == {"limit": None, "guaranteed": "0"}
    assert load_config(agent_yaml, {}, ["namespaces={}"]).config.namespaces == {}


def test_guarantees_on_a_disk_that_is_not_there_are_not_judged(agent_yaml: Path) -> None:
    rule = "namespaces={a/*: {disk: {guaranteed: 1TiB}}}"
    load_config(agent_yaml, {}, [rule])
    message = refusal(agent_yaml, {}, rule, "tiers.disk.paths=[/d]")
    assert "a/*.disk.guaranteed (1TiB)" in message
    assert "tiers.disk.capacity (10GiB)" in message


def test_values_are_named_as_in_yaml(agent_yaml: Path) -> None:
    assert "movers = true is not allowed" in refusal(agent_yaml, {}, "movers=true")
    assert "workers = null is not allowed" in refusal(agent_yaml, {}, "workers=null")


def test_an_item_of_a_list_is_named_with_its_line(agent_yaml: Path) -> None:
    agent_yaml.write_text("workers:\n  - uid: 1\n  - uid: 2\n    tenants: [A]\n")
    assert f"{agent_yaml}, line 3: workers[1].tenants = [A]" in refusal(agent_yaml)


def test_a_relative_runtime_directory_is_named(
    agent_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    message = refusal(agent_yaml, {"XDG_RUNTIME_DIR": "run"})
    assert message.startswith("XDG_RUNTIME_DIR: socket_dir = 'run/kvtier' is not allowed: write")


def test_the_file_that_was_read_is_known(agent_yaml: Path) -> None:
    assert load_config(agent_yaml, {}, ()).file == agent_yaml


def test_all_bad_values_are_named_at_once(agent_yaml: Path) -> None:
    agent_yaml.write_text("movers: 0\nlog:\n  level: loud\n")
    assert len(refusal(agent_yaml).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "is not YAML"),
        ("- movers", "must be a mapping"),
        ("movers: 1\nmovers: 2", "line 2: movers is given twice"),
        ("movers: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_a_broken_file_is_refused(agent_yaml: Path, text: str, complaint: str) -> None:
    agent_yaml.write_text(text)
    message = refusal(agent_yaml)
    assert str(agent_yaml) in message
    assert complaint in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml")


def test_an_override_without_a_value_is_refused(agent_yaml: Path) -> None:
    assert "write --set KEY=VALUE" in refusal(agent_yaml, {}, "movers")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64GiB", 64 * 2**30),
        ("512 MiB", 2**29),
        ("4KiB", 4096),
        ("1.5TiB", 3 * 2**39),
        ("4096", 4096),
        ("7B", 7),
    ],
)
def test_sizes_read_as_written(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@given(st.integers(min_value=0, max_value=2**62))
def test_a_formatted_size_reads_back_as_itself(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_a_shown_configuration_loads_again(agent_yaml: Path) -> None:
    shown = AgentConfig().model_dump(mode="json")
    assert shown["tiers"]["host"]["capacity"] == "1GiB"
    agent_yaml.write_text(yaml.safe_dump(shown))
    assert load_config(agent_yaml, {}, ()).config == AgentConfig()


def test_hd_with_a_rule_of_admission_is_refused_with_the_reason(agent_yaml: Path) -> None:
    agent_yaml.write_text("tiers: {disk: {policy: hd, admission: second_hit}}\n")
    message = refusal(agent_yaml)
    assert "tiers.disk.admission = 'second_hit' is not allowed: hd admits by what" in message
