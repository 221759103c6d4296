"""Workers, agents and a Redis under troubles of all kinds, for hours: `make soak HOURS=n SEED=s`.

One line of JSON a minute on stdout says what was seen; the last one says whether all was well, as
does the exit status. A round of some minutes ends with all workers gone, all troubles over,
every tier good again and nothing leased any more. The same seed brings the same troubles in the
same order; how they meet with what workers do is another each time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from tests.soak.deployment import HOST_BYTES, Deployment
from tests.soak.growth import Sample, leaks, sample
from tests.soak.troubles import Troubles

_MINUTE = 60.0
_ROUND_SECONDS = 300.0
_PAUSE_SECONDS = (0.2, 2.0)


class Soak:
    """One run. `failures` are the reasons why it failed."""

    def __init__(self, deployment: Deployment, seed: str, seconds: float) -> None:
        self.failures: list[str] = []
        self._deployment = deployment
        self._random = Random(f"pauses {seed}")
        self._troubles = Troubles(deployment, Random(f"troubles {seed}"))
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._samples: list[Sample] = []
        self._told_minutes = 0

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def run(self) -> None:
        """Until the time is over, or something is wrong."""
        while not self.failures and time.monotonic() < self._end:
            until = min(self._end, time.monotonic() + _ROUND_SECONDS)
            while not self.failures and time.monotonic() < until:
                self._troubles.befall()
                time.sleep(self._random.uniform(*_PAUSE_SECONDS))
                self._note()
            self._come_to_rest()
        self._tell()

    def _note(self) -> None:
        self._samples.append(sample(self._deployment.lasting.pid, self._elapsed))
        if self._elapsed // _MINUTE > self._told_minutes:
            self._told_minutes = int(self._elapsed // _MINUTE)
            for crew in self._deployment.crews:
                crew.report()
            self._tell()
            self._judge()

    def _come_to_rest(self) -> None:
        """Workers disconnect, and then go; tiers are good, leases have ended; then workers come
        again."""
        for crew in self._deployment.crews:
            crew.disconnect()
        self._expect("nothing is leased to those who left", self._deployment.until_unleased)
        for crew in self._deployment.crews:
            crew.close()
        self._expect("every tier is good", self._deployment.until_good)
        self._expect("nothing is leased, held, reserved or on its way", self._deployment.until_free)
        self._judge()
        for crew in self._deployment.crews:
            crew.hire()

    def _expect(self, wanted: str, wait: Callable[[], None]) -> None:
        try:
            wait()
        except AssertionError as error:
            self.failures.append(f"at rest, {wanted}: {error}")

    def _judge(self) -> None:
        seen = self._deployment.seen()
        for bad in ("wrong", "bugs", "died"):
            if seen[bad]:
                self.failures.append(f"{bad}: {seen[bad]}")
        self.failures += leaks(self._samples, HOST_BYTES)
        for agent in self._deployment.agents:
            if "incident" in agent.log or "Traceback" in agent.log:
                self.failures.append(f"the log of {agent.directory.name} has a bug")
        self.failures = list(dict.fromkeys(self.failures))

    def _tell(self) -> None:
        line = {
            "seconds": round(self._elapsed),
            "seen": dict(self._deployment.seen()),
            "troubles": dict(self._troubles.counts),
            "lasting": asdict(self._samples[-1]) if self._samples else None,
            "failures": self.failures,
        }
        print(json.dumps(line), flush=True)  # noqa: T201


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--seed", default="1")
    chosen = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="kvtier-soak-") as directory,
        Deployment(Path(directory), Random(f"workers {chosen.seed}")) as deployment,
    ):
        soak = Soak(deployment, chosen.seed, chosen.hours * 3600)
        try:
            soak.run()
        finally:
            if soak.failures:
                kept = Path(tempfile.mkdtemp(prefix="kvtier-soak-logs-"))
                for agent in deployment.agents:
                    (kept / f"{agent.directory.name}.log").write_text(agent.log)
                print(f"the agents' logs are in {kept}", file=sys.stderr)  # noqa: T201
    print(json.dumps({"well": not soak.failures, "failures": soak.failures}))  # noqa: T201
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
