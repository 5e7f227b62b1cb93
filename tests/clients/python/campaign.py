"""The steps that every Python client goes through. A client's program is an adapter: one method for each thing that it does.

What an adapter lacks it names in `lacks`, with the reason. See campaign.mjs for the same in JavaScript.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import sys
import tempfile
import time
import urllib.request

WORLD = json.loads(os.environ["WORLD"])
NUMBER, EXPIRED = WORLD["phone_number_ids"][0], WORLD["expired_phone_number_id"]
LINK = "https://example.com/a.png"
# Meta's codes that a careful application sends again after, besides any 5xx and any broken connection.
TRANSIENT = {1, 2, 4, 130429, 131000, 131016, 131056, 131057}
ATTEMPTS = 4


class Refused(Exception):
    """For clients without an exception of their own."""

    def __init__(self, code, status=400):
        super().__init__(f"code {code}, status {status}")
        self.code, self.status = code, status


class Expectations:
    """How many messages each person should have got in the end."""

    def __init__(self):
        self.people = {}

    def person(self, least, why, most=None):
        person = f"{WORLD['prefix']}{len(self.people):04}"
        self.people[person] = (least, least if most is None else most, why)
        return person


def control(path, body):
    request = urllib.request.Request(
        WORLD["simulator"] + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def fault(person, kind, times=1, **more):
    control("/_simulator/faults", {"phone_number_id": NUMBER, "to": person, "times": times, "fault": {"kind": kind, **more}})


def written_by(person):
    """A person writes; the message's wamid."""
    return control("/_simulator/inbound", {"phone_number_id": NUMBER, "from": person, "text": "Hello"})["wamid"]


def wanted(condition, what):
    if not condition:
        raise AssertionError(what)


def stubborn(adapter, call, attempts=ATTEMPTS):
    """A careful application: it sends again after a broken connection, a 5xx and a transient code. Returns the last answer."""
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:  # noqa: BLE001: whatever the client throws
            code, status = adapter.refusal(error)
            final = code is not None and status is not None and status < 500 and status != 429 and code not in TRANSIENT
            if final or attempt + 1 == attempts:
                raise
            time.sleep(0.3)


class Campaign:
    def __init__(self, make):
        """`make(number, timeout)` gives an adapter; without a timeout, the client's own default counts."""
        self.make, self.adapter, self.expect = make, make(NUMBER, None), Expectations()
        self.file = pathlib.Path(tempfile.mkdtemp()) / "picture.png"
        self.file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(20_000)))

    def step(self, name, act):
        lacks = self.adapter.lacks.get(name)
        if lacks:
            return self.report(name, "skipped", lacks)
        try:
            self.report(name, "ok", act() or "")
        except Exception as error:  # noqa: BLE001: any failure is a failed step
            self.report(name, "failed", f"{type(error).__name__}: {error}"[:500])

    @staticmethod
    def report(step, result, detail):
        # With the line break in one write: the last steps run at the same time.
        sys.stdout.write(json.dumps({"step": step, "result": result, "detail": detail}) + "\n")
        sys.stdout.flush()

    def run(self):
        a, person = self.adapter, self.expect.person
        self.step("text", lambda: a.text(person(1, "a text"), "Hello"))
        self.step("the same text twice", self.twice)
        self.step("reply", self.reply)
        self.step("reaction", self.reaction)
        self.step("template", lambda: a.template(person(1, "a template"), "hello_world"))
        self.step("list or buttons", lambda: a.choices(person(1, "choices")))
        self.step("image by link", lambda: a.image_link(person(1, "an image by link"), LINK))
        self.step("upload, send by id", self.upload)
        self.step("download", self.download)
        self.step("mark as read", lambda: a.read(written_by(person(0, "mark as read"))))
        self.step("typing", lambda: a.typing(written_by(person(0, "typing"))))
        self.step("pages to the end", self.pages)
        self.step("other reads", lambda: a.others())
        self.step("bad recipient", self.bad_recipient)
        self.step("expired token", self.expired)
        self.step("album of ten", self.album)
        # At the same time: an answer that never comes takes ten seconds.
        kinds = ["accept_then_hang", "accept_then_reset", "accept_then_bad_gateway", "accept_then_server_error"]
        steps = [(f"lost: {kind}", lambda kind=kind: self.lost(kind, accepted=True)) for kind in kinds]
        steps += [(f"lost: {kind}", lambda kind=kind: self.lost(kind, accepted=False)) for kind in ["server_error", "reset_unaccepted"]]
        steps += [("client gives up, asks again", self.gives_up), ("Meta's transient error", self.transient)]
        with concurrent.futures.ThreadPoolExecutor(len(steps)) as pool:
            list(pool.map(lambda step: self.step(*step), steps))
        print(json.dumps({"expected": self.expect.people}), flush=True)

    def twice(self):
        person = self.expect.person(2, "the same text twice")
        wanted(self.adapter.text(person, "ok") != self.adapter.text(person, "ok"), "the second one got the first one's id")

    def reply(self):
        person = self.expect.person(1, "a reply")
        self.adapter.reply(person, "An answer", written_by(person))

    def reaction(self):
        person = self.expect.person(1, "a reaction")
        self.adapter.react(person, written_by(person), "👍")

    def upload(self):
        self.medium = self.adapter.upload(self.file)
        wanted(str(self.medium).isdigit(), f"no id: {self.medium}")
        self.adapter.image_id(self.expect.person(1, "an image by id"), self.medium)

    def download(self):
        medium = getattr(self, "medium", None) or plain_upload(self.file)
        wanted(self.adapter.download(medium, self.file.parent) == self.file.read_bytes(), "other bytes came down")

    def pages(self):
        names = self.adapter.pages()
        wanted(names == ["hello_world", "order", "reminder"], f"the pages had {names}")

    def refused(self, call, codes):
        try:
            call()
        except Exception as error:  # noqa: BLE001
            code, _ = self.adapter.refusal(error)
            wanted(code in codes, f"the code is {code}: {error!r}")
            return type(error).__name__
        raise AssertionError("it was not refused")

    def bad_recipient(self):
        return self.refused(lambda: self.adapter.text("12", "Hello"), {100, 131008, 131009, 131026, 131030})

    def expired(self):
        person = self.expect.person(0, "an expired token")
        adapter = self.make(EXPIRED, None)
        return self.refused(lambda: stubborn(adapter, lambda: adapter.text(person, "Hello")), {190})

    def album(self):
        person = self.expect.person(10, "an album of ten")
        fault(person, "slow_answer", times=10, delay_ms=700)
        adapter = self.make(NUMBER, 60)
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            ids = list(pool.map(lambda _: adapter.image_link(person, LINK), range(10)))
        wanted(len(set(ids)) == 10, f"the ids are {ids}")

    def lost(self, kind, accepted):
        """The person gets it at most once, and the next message as well. If Meta took it, the client learns its id."""
        why = f"a lost answer ({kind}) and another text"
        person = self.expect.person(2 if accepted else 1, why)
        fault(person, kind)
        try:
            first = stubborn(self.adapter, lambda: self.adapter.text(person, f"once {kind}"))
        except Exception as error:  # noqa: BLE001
            first = None
            code, status = self.adapter.refusal(error)
            wanted(code is not None, f"the last answer was {error!r}")
        stubborn(self.adapter, lambda: self.adapter.text(person, f"another {kind}"))
        deadline = time.monotonic() + 20
        while accepted and not first:
            wanted(time.monotonic() < deadline, "its id is not learned")
            time.sleep(0.3)
            try:
                first = self.adapter.text(person, f"once {kind}")
            except Exception as error:  # noqa: BLE001
                wanted(self.adapter.refusal(error)[0] is not None, f"{error!r}")
        return "" if first else "told so"

    def gives_up(self):
        """The client's own time-out ends before Meta's answer is there."""
        person = self.expect.person(1, "a client that gives up and asks again")
        # Without statuses, from which the server would know the message's id earlier.
        fault(person, "silent")
        fault(person, "slow_answer", delay_ms=2500)
        adapter = self.make(NUMBER, 1)
        stubborn(adapter, lambda: adapter.text(person, "only once"), attempts=10)

    def transient(self):
        person = self.expect.person(1, "a transient error")
        fault(person, "error", code=131016)
        stubborn(self.adapter, lambda: self.adapter.text(person, "in the end"))


def plain_upload(file):
    """For a client that can't upload: its download needs a medium."""
    head = b"--limit\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n"
    body = head % (b"messaging_product", b"whatsapp") + head % (b"type", b"image/png")
    body += b"--limit\r\nContent-Disposition: form-data; name=\"file\"; filename=\"p.png\"\r\nContent-Type: image/png\r\n\r\n"
    body += file.read_bytes() + b"\r\n--limit--\r\n"
    headers = {"Authorization": f"Bearer {WORLD['token']}", "Content-Type": "multipart/form-data; boundary=limit"}
    request = urllib.request.Request(f"{WORLD['api']}/v26.0/{NUMBER}/media", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["id"]
