"""A run that bfloat16 makes slower is told so."""

import logging

import pytest
import torch

from onebest_training import bf16


def test_the_gain_is_a_ratio_of_times():
    assert bf16.measure_gain() > 0


@pytest.mark.parametrize(
    ("wanted", "device", "gain", "warns"),
    [
        (True, "cpu", 0.5, True),
        (True, "cpu", 1.8, False),
        (True, "cuda", 0.5, False),
        (False, "cpu", 0.5, False),
    ],
)
def test_a_warning_where_it_slows_down(monkeypatch, caplog, wanted, device, gain, warns):
    monkeypatch.setattr(bf16, "measure_gain", lambda: gain)
    with caplog.at_level(logging.WARNING):
        bf16.advise(wanted, torch.device(device))
    assert [record.getMessage() for record in caplog.records] == (
        [
            "a product in bfloat16 takes 2.0 times as long as in float32 on this processor. "
            "With bf16 = false in the configuration this run would be faster."
        ]
        if warns
        else []
    )
