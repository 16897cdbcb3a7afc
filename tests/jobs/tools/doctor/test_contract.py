import threading
import time

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.tools.doctor.contract import Check, Finding, Subject, examined


def failing(error):
    def find(subject):
        raise error

    return find


def test_no_check_hangs_or_raises():
    never = threading.Event()
    checks = {
        "hangs": Check(lambda subject: never.wait(60), 0.2, "check the mount"),
        "hangs too": Check(lambda subject: never.wait(60), 0.2),
        "raises": Check(failing(ZeroDivisionError("x\ny"))),
        "refuses": Check(failing(JobError("no bucket b; create it"))),
        "does not apply": Check(lambda subject: None),
        "works": Check(lambda subject: Finding("ok", "fine")),
    }
    began = time.monotonic()
    found = dict(examined(checks, Subject()))
    assert time.monotonic() - began < 1
    assert found == {
        "hangs": Finding("problem", "no answer within 0.2 s", "check the mount"),
        "hangs too": Finding("problem", "no answer within 0.2 s", checks["hangs too"].stuck),
        "raises": Finding("problem", "ZeroDivisionError: x", "report this"),
        "refuses": Finding("problem", "no bucket b", "create it"),
        "works": Finding("ok", "fine"),
    }


def test_credentials_are_redacted():
    secret = "X-Amz-Signature=canary"
    (_, found) = next(examined({"x": Check(lambda subject: Finding("problem", secret, secret))}, Subject()))
    assert "canary" not in found.text + found.remedy
