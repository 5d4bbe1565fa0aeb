"""TensorBoard event files, read with the tensorboard package (extra: track). Values are float32."""

from __future__ import annotations

from pathlib import Path

from cptplan.errors import CurveError
from cptplan.importers.training_log import TrainingLog, make_log

EVENT_FILES = "*tfevents*"


def read_tensorboard(path: Path) -> TrainingLog:
    """All scalars of an event file, or of the event files of one run's directory, by tag.

    Raises:    CurveError if the package is missing, or there are no scalars.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise CurveError(
            f"tensorboard must be installed to read event files; got none for {path}.",
            hint="pip install 'cptplan[track]', or export the scalars as CSV",
        ) from error
    if path.is_dir() and not any(path.glob(EVENT_FILES)):
        below = sorted({str(found.parent) for found in path.rglob(EVENT_FILES)})
        raise CurveError(
            f"directory must hold the event files of one run; got none in {path}.",
            hint=f"give one of {', '.join(below[:5])}" if below else "check the path",
        )
    # 0 keeps every point: by default only a sample of 10,000 scalars and 10 tensors would be read
    events = EventAccumulator(str(path), size_guidance={SCALARS: 0, TENSORS: 0}, purge_orphaned_data=False)
    events.Reload()
    points = {tag: [(float(e.step), float(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}
    for tag in events.Tags()[TENSORS]:  # scalars of TensorFlow 2 and of torch's new style
        values = [(float(event.step), make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        if all(value.size == 1 and value.dtype.kind in "fiu" for _, value in values):
            points[tag] = [(step, float(value.reshape(()))) for step, value in values]
    if not points:
        raise CurveError(f"event files must hold scalars; got none in {path}.", hint="check that it is the right run")
    return make_log(str(path), points)
