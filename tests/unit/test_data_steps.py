"""Steps by our arithmetic and by the Trainer's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_data.steps import Steps, optimizer_steps


@pytest.mark.parametrize(
    ("sequences", "epochs", "max_steps", "expected"),
    [
        (100, 3, None, Steps(7, 21)),  # 25 micro-batches, the last step of one alone
        (96, 3, None, Steps(6, 18)),
        (1, 1, None, Steps(1, 1)),
        (100, 0.5, None, Steps(7, 4)),
        (100, 3, 60, Steps(7, 60)),
    ],
)
def test_known_cases(sequences: int, epochs: float, max_steps: int | None, expected: Steps) -> None:
    found = optimizer_steps(
        sequences, batch_size=4, gradient_accumulation=4, epochs=epochs, max_steps=max_steps
    )
    assert found == expected


@pytest.mark.torch
def test_the_trainer_agrees(tmp_path_factory: pytest.TempPathFactory) -> None:
    from torch import nn
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    folder = str(tmp_path_factory.mktemp("trainer"))

    @given(
        st.integers(1, 500),
        st.integers(1, 9),
        st.integers(1, 9),
        st.floats(0.01, 5),
        st.none() | st.integers(1, 400),
    )
    def agree(
        sequences: int, batch: int, accumulation: int, epochs: float, max_steps: int | None
    ) -> None:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            max_steps=max_steps or -1,
            use_cpu=True,
        )
        trainer.args = arguments
        loader: DataLoader[Any] = DataLoader([0] * sequences, batch_size=batch)  # type: ignore[arg-type] # a list is a data set
        theirs = trainer.set_initial_training_values(arguments, loader)
        ours = optimizer_steps(
            sequences,
            batch_size=batch,
            gradient_accumulation=accumulation,
            epochs=epochs,
            max_steps=max_steps,
        )
        assert (ours.per_epoch, ours.total) == (theirs[1], theirs[6])

    trainer = Trainer(nn.Linear(1, 1), TrainingArguments(folder, use_cpu=True))
    agree()
