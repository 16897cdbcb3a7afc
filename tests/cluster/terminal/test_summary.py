"""What the end of a run says about its isolation."""

from types import SimpleNamespace

from maskfleet.cluster.terminal import summary


def said(means):
    return "\n".join(summary._isolation(SimpleNamespace(decoder_isolation=means)))


def test_means_that_were_not_to_be_had_are_said_once():
    assert said(["landlock", "seccomp"]) == ""
    assert said(None) == ""  # nothing was decoded
    assert "without landlock, which" in said(["seccomp"])
    assert "without landlock and seccomp, which" in said([])
