"""The index up to which all live nodes have programmed the endpoint table."""

from __future__ import annotations

from orchestrator.dispatcher.watermark import AcknowledgementTable


def table(*node_ids: str) -> AcknowledgementTable:
    made = AcknowledgementTable()
    for node_id in node_ids:
        made.expect(node_id, 10)
        made.acknowledged(node_id, 10)
    return made


def test_without_nodes_the_store_is_the_measure() -> None:
    assert AcknowledgementTable().watermark(7) == 7


def test_the_slowest_node_that_a_change_concerns_holds_the_watermark() -> None:
    acks = table("n1", "n2", "n3")
    acks.changed(["n1", "n2"], 20)
    assert acks.watermark(20) == 19  # all held everything before
    acks.acknowledged("n1", 20)
    assert acks.watermark(22) == 19
    acks.acknowledged("n2", 20)
    assert acks.watermark(22) == 22  # n3 was not concerned, and nothing else is open


def test_a_node_that_acknowledges_a_later_index_holds_the_earlier_ones() -> None:
    acks = table("n1")
    acks.changed(["n1"], 20)
    acks.changed(["n1"], 21)
    acks.acknowledged("n1", 25)
    assert acks.watermark(25) == 25


def test_a_node_behind_on_an_earlier_change_stays_behind() -> None:
    acks = table("n1")
    acks.changed(["n1"], 20)
    acks.changed(["n1"], 30)
    acks.acknowledged("n1", 20)
    assert acks.watermark(30) == 20


def test_a_node_that_is_down_or_gone_is_not_waited_for() -> None:
    acks = table("n1", "n2")
    acks.changed(["n1", "n2"], 20)
    acks.acknowledged("n1", 20)
    acks.drop("n2")
    assert acks.watermark(20) == 20


def test_a_node_that_a_new_leader_expects_holds_it_until_it_was_heard() -> None:
    acks = AcknowledgementTable()
    acks.expect("n1", 10)
    assert acks.watermark(10) == 0
    acks.acknowledged("n1", 10)
    assert acks.watermark(12) == 12


def test_the_watermark_never_goes_back() -> None:
    acks = table("n1")
    assert acks.watermark(15) == 15
    acks.expect("n2", 15)
    assert acks.watermark(15) == 15


def test_strangers_are_ignored() -> None:
    acks = table("n1")
    acks.acknowledged("nobody", 99)
    acks.changed(["nobody"], 99)
    assert acks.watermark(11) == 11
    assert acks.waiting_for() == frozenset()
