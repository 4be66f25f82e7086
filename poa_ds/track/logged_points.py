"""Which points a run in an MLflow store has already: each comes once, whatever was interrupted."""

from typing import Any


class LastSteps:
    """Counts every point up to a metric's last one as there: no call, and points come in order."""

    def __init__(self, client: Any, run: Any) -> None:
        self._last = {metric.key: metric.step for metric in run.to_proto().data.metrics}

    def has(self, name: str, step: int) -> bool:
        return step <= self._last.get(name, -1)

    def add(self, name: str, step: int) -> None:
        self._last[name] = step


class AllSteps:
    """Knows every point, by one call per metric: finds gaps too."""

    def __init__(self, client: Any, run: Any) -> None:
        self._client, self._run = client, run
        self._steps: dict[str, set[int]] = {}

    def has(self, name: str, step: int) -> bool:
        return step in self._known(name)

    def add(self, name: str, step: int) -> None:
        self._known(name).add(step)

    def _known(self, name: str) -> set[int]:
        if name not in self._steps:
            there = name in self._run.data.metrics
            run = self._run.info.run_id
            history = self._client.get_metric_history(run, name) if there else ()
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]
