"""The iptables rules that the cluster adds: found, and taken back without touching any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from errors import ClusterError
from layout import BRIDGE
from shell import run, succeeds

_FAMILIES = ("iptables", "ip6tables")
# chains of the kubelet and kube-proxy, and of the CNI plugins
_PREFIXES = ("KUBE-", "CNI-")


def chains() -> list[str]:
    """As family/table/name."""
    return [chain for family in _present() for chain in _chains(family, _saved(family))]


def check_free() -> None:
    """Raises ClusterError if another Kubernetes has rules here: kube-proxy would change them."""
    if any("/KUBE-" in chain for chain in chains()):
        raise ClusterError(
            "this machine has iptables chains of another Kubernetes (KUBE-…): end that first"
        )


def clean(keep: Collection[str]) -> None:
    """Remove the cluster's chains and the rules that jump to them, but the chains in `keep`."""
    for family in _present():
        saved = _saved(family)
        ours = {
            chain
            for chain in _chains(family, saved)
            if chain not in keep
            and chain.rpartition("/")[2].startswith(_PREFIXES)
            and not _of_another_network(chain, family, saved)
        }
        if changes := _removal(family, saved, ours):
            run([f"{family}-restore", "--noflush"], stdin="\n".join(changes) + "\n")


def _removal(family: str, saved: list[tuple[str, str]], ours: set[str]) -> list[str]:
    """In iptables-restore's form; each table is changed in one go."""
    lines: dict[str, list[str]] = defaultdict(list)
    for table, line in saved:
        if line.startswith("-A ") and f"{family}/{table}/{line.split()[1]}" not in ours:
            targets = {f"{family}/{table}/{name}" for name in _targets(line)}
            if targets & ours:
                lines[table].append(line.replace("-A ", "-D ", 1))
    for option in ("-F", "-X"):
        for chain in sorted(ours):
            _, table, name = chain.split("/", 2)
            lines[table].append(f"{option} {name}")
    return [each for table, said in lines.items() for each in (f"*{table}", *said, "COMMIT")]


def _of_another_network(chain: str, family: str, saved: Iterable[tuple[str, str]]) -> bool:
    """Whether its rules carry the name of another CNI network, as the bridge plugin writes it."""
    _, table, name = chain.split("/", 2)
    rules = [line for at, line in saved if at == table and line.startswith(f"-A {name} ")]
    named = [rule for rule in rules if 'name: \\"' in rule]
    return bool(named) and not any(f'name: \\"{BRIDGE}\\"' in rule for rule in named)


def _targets(line: str) -> list[str]:
    words = line.split()
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-j", "-g")]


def _chains(family: str, saved: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{family}/{table}/{line[1:].split()[0]}" for table, line in saved if line[0] == ":"]


def _saved(family: str) -> list[tuple[str, str]]:
    """The lines that iptables-save prints, each with its table."""
    table, lines = "", []
    for line in run([f"{family}-save"]).splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith((":", "-A")):
            lines.append((table, line))
    return lines


def _present() -> list[str]:
    return [family for family in _FAMILIES if succeeds([f"{family}-save"])]
