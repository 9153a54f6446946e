"""The page in a real Chromium, against a real server with the shipped model."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, opened, running_chromium
from foreign import SAMPLE, serving_shipped, shipped

from onebest_server.limits import Limits
from onebest_server.protocol import INTERNAL, Failed
from onebest_server.protocols.onebest import OnebestProtocol

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"
)

SPEECH_SECONDS = 4.0
RATE = 16000
STATE = "document.querySelector('#state').textContent"
FINALS = "[...document.querySelectorAll('.final')].map((span) => span.textContent)"
PARTIAL = "document.querySelector('#partial .changing').textContent"
PROBLEM = "document.querySelector('#problem').textContent"
NOTICE = "document.querySelector('#notice').textContent"
# Keeps what the recorder gave to the page.
RECORD = """
window.recorded = [];
window.AudioWorkletNode = class extends AudioWorkletNode {
  constructor(...given) {
    super(...given);
    this.port.addEventListener("message", ({ data }) => data && window.recorded.push(data));
  }
};
"""
RECORDED = """
(async () => {
  const reader = new FileReader();
  reader.readAsDataURL(new Blob(window.recorded));
  await new Promise((resolve) => (reader.onload = resolve));
  return reader.result.split(",")[1];
})()
"""


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A WAV file of some seconds."""
    samples, rate = soundfile.read(SAMPLE, dtype="int16")
    assert rate == RATE
    path = tmp_path_factory.mktemp("sound") / "speech.wav"
    soundfile.write(path, samples[: int(SPEECH_SECONDS * RATE)], rate)
    return path


@pytest.fixture(scope="module")
def devtools(tmp_path_factory, speech):
    with running_chromium(tmp_path_factory.mktemp("chromium"), speech) as address:
        yield address


@pytest.fixture
def heard(monkeypatch):
    """The audio messages that each session of the server took, in order."""
    heard = {}
    receive = OnebestProtocol.receive

    def note(self, message):
        if isinstance(message, bytes):
            heard.setdefault(id(self), []).append(np.frombuffer(message, "<f4"))
        return receive(self, message)

    monkeypatch.setattr(OnebestProtocol, "receive", note)
    return lambda: [np.concatenate(messages) for messages in heard.values()]


def offline(samples, rate):
    """Return what the shipped model says of samples, a text a segment."""
    models = shipped()
    stream = models._recognizers[models.latencies_ms[0]].stream(rate, endpoints=True)
    stream.accept(samples)
    return [segment.text for segment in stream.finish().segments]


def visit(devtools, talk, before="", path="/", **settings):
    """Open the page of a server and talk to both."""

    @asynccontextmanager
    async def visiting():
        async with serving_shipped(**settings) as server:
            address = f"http://127.0.0.1:{server.port}{path}"
            async with opened(devtools, address, before) as page:
                yield server, page

    async def run():
        async with visiting() as (server, page):
            result = await talk(server, page)
            assert page.errors == []
            assert {url.split("/")[2] for url in page.requests if not url.startswith("blob:")} == {
                f"127.0.0.1:{server.port}"
            }
            return result

    return asyncio.run(run())


async def ready(page):
    await page.until(f"{STATE} === 'Ready'")


async def transcribe(page, path):
    await page.drop(path)
    await page.until(f"{STATE} !== 'Ready'")
    await ready(page)
    return await page.evaluate(FINALS)


def cut(server):
    """Cut the connections of all clients, without a word."""
    for connection in server._admitted:
        connection.transport.abort()


class TestMicrophone:
    def listen(self, devtools, during=None):
        async def talk(server, page):
            await page.click("#record")
            await page.until(f"{PARTIAL}.length > 0")
            style = await page.evaluate(
                "(({ fontStyle, textDecorationLine }) => [fontStyle, textDecorationLine])"
                "(getComputedStyle(document.querySelector('#partial .changing')))"
            )
            if during is not None:
                await during(server, page)
            await page.until(f"recorded.length > {(SPEECH_SECONDS + 0.5) / 0.04}")
            await page.click("#record")
            await ready(page)
            recorded = np.frombuffer(base64.b64decode(await page.evaluate(RECORDED)), "<f4")
            rate = await page.evaluate("new AudioContext().sampleRate")
            return await page.evaluate(FINALS), recorded, rate, style

        return visit(devtools, talk, RECORD)

    def test_text_comes_while_it_is_spoken(self, devtools, heard, speech):
        texts, recorded, rate, style = self.listen(devtools)
        (taken,) = heard()
        assert np.array_equal(taken, recorded)
        assert texts == offline(taken, rate)
        assert style == ["italic", "underline"]  # told apart not by colour alone
        played, _ = soundfile.read(speech, dtype="float32")
        said = " ".join(offline(played, RATE))
        # Not to the letter: the browser resamples, and begins anywhere in the silence before.
        assert SequenceMatcher(None, " ".join(texts), said).ratio() > 0.8

    def test_nothing_is_lost_with_the_connection(self, devtools, heard):
        async def during(server, page):
            server._front.draining = True
            cut(server)
            await page.until(f"{STATE} === 'Waiting'")
            assert "about to restart" in await page.evaluate(NOTICE)
            server._front.draining = False
            await page.until(f"{STATE} === 'Listening'")

        texts, recorded, rate, _ = self.listen(devtools, during)
        (taken,) = heard()
        assert np.array_equal(taken, recorded)
        assert texts == offline(taken, rate)

    def test_nothing_is_lost_when_the_server_forgets(self, devtools, heard):
        async def during(server, page):
            cut(server)
            for session in list(server.sessions._all.values()):
                session.end()
            await page.until("document.querySelector('#state').dataset.connection === 'lost'")
            assert "is lost" in await page.evaluate(NOTICE)
            await page.until(f"{STATE} === 'Listening'")

        texts, recorded, rate, _ = self.listen(devtools, during)
        _, taken = heard()
        assert np.array_equal(taken, recorded[len(recorded) - len(taken) :])
        assert len(taken) > SPEECH_SECONDS * rate * 0.8  # nothing was settled before, so nearly all again
        assert texts == offline(taken, rate)

    def test_the_screen_stays_on(self, devtools):
        before = """
        window.locks = [];
        Object.defineProperty(navigator, "wakeLock", { value: { request: async () => {
          const lock = { held: true, release: () => (lock.held = false) };
          window.locks.push(lock);
          return lock;
        } } });
        """
        held = "locks.map((lock) => lock.held)"

        async def talk(server, page):
            await page.click("#record")
            await page.until("locks.length === 1")
            # As if the page had been hidden, which ends a lock.
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            await page.until("locks.length === 2")
            during = await page.evaluate(held)
            await page.click("#record")
            await ready(page)
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            return during, await page.evaluate(held)

        assert visit(devtools, talk, before) == ([False, True], [False, False])

    def test_words_stay_when_the_server_fails(self, devtools):
        async def talk(server, page):
            await page.click("#record")
            await page.until(f"{PARTIAL}.length > 0")
            for session in list(server.sessions._all.values()):
                session.tell(Failed(INTERNAL, "The server failed."))
            await ready(page)
            assert await page.evaluate(PROBLEM) == "The server failed."
            assert await page.evaluate(PARTIAL) == ""
            return await page.evaluate(FINALS)

        assert len(visit(devtools, talk)) == 1

    @pytest.mark.parametrize(
        ("before", "problem"),
        [
            ("NotAllowedError", "is not allowed for this page"),
            ("NotFoundError", "No microphone was found"),
            ("OverconstrainedError", "No microphone was found"),
            ("NotReadableError", "Another program may have it"),
            (None, "over HTTPS or from this machine"),
        ],
    )
    def test_why_there_is_none(self, devtools, before, problem):
        script = (
            f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{before}') }}"
            if before
            else "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })"
        )

        async def talk(server, page):
            await page.click("#record")
            await page.until(f"{PROBLEM} !== ''")
            assert await page.evaluate(STATE) == "Ready"
            assert await page.evaluate("document.querySelector('#problem').getAttribute('role')") == "alert"
            return await page.evaluate(PROBLEM)

        assert problem in visit(devtools, talk, script)

    def test_a_browser_whose_sound_never_starts(self, devtools):
        script = """
        AudioContext.prototype.resume = () => new Promise(() => {});
        const wait = setTimeout;
        window.setTimeout = (call, milliseconds) => wait(call, milliseconds / 100);
        """

        async def talk(server, page):
            await page.click("#record")
            await page.until(f"{PROBLEM} !== ''")
            return await page.evaluate(PROBLEM), await page.evaluate(STATE)

        problem, state = visit(devtools, talk, script)
        assert "sound does not start" in problem
        assert state == "Ready"


class TestFile:
    def test_dropped(self, devtools, heard, speech):
        texts = visit(devtools, lambda server, page: transcribe(page, SAMPLE))
        (taken,) = heard()
        samples, _ = soundfile.read(SAMPLE, dtype="float32")
        assert taken == pytest.approx(samples, abs=1e-4)
        assert texts == offline(taken, RATE)

    def test_chosen(self, devtools, heard, speech):
        async def talk(server, page):
            await page.choose("#file", speech)
            await page.until(f"{FINALS}.length > 0")
            await ready(page)
            return await page.evaluate(FINALS)

        assert visit(devtools, talk) == offline(heard()[0], RATE)

    def test_one_after_another(self, devtools, heard, speech, tmp_path):
        (tmp_path / "letter.txt").write_text("Dear reader")
        (tmp_path / "empty.wav").touch()

        async def talk(server, page):
            await page.drop(SAMPLE, tmp_path / "letter.txt", speech, tmp_path / "empty.wav")
            await page.until("document.querySelectorAll('#finals h2').length === 2")
            await page.until(f"{PROBLEM}.includes('empty.wav')")
            await ready(page)
            return await page.evaluate(FINALS), await page.evaluate(PROBLEM)

        texts, problem = visit(devtools, talk)
        assert texts == [text for taken in heard() for text in offline(taken, RATE)]
        assert len(heard()) == 2
        assert "letter.txt is no recording" in problem
        assert "empty.wav is no recording" in problem

    def test_no_recording(self, devtools, tmp_path):
        (tmp_path / "letter.txt").write_text("Dear reader")

        async def talk(server, page):
            await page.drop(tmp_path / "letter.txt")
            await page.until(f"{PROBLEM} !== ''")
            return await page.evaluate(PROBLEM)

        assert "letter.txt is no recording" in visit(devtools, talk)

    def test_without_words(self, devtools, tmp_path):
        soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.int16), RATE)

        async def talk(server, page):
            assert await transcribe(page, tmp_path / "silence.wav") == []
            said = await page.evaluate("document.querySelector('#finals').innerText")
            await page.click("#clear")
            assert await page.evaluate("document.querySelector('#finals').innerText") == ""
            return said.split("\n")

        said = visit(devtools, talk)
        assert (said[0], said[-1]) == ("silence.wav", "No words were heard.")

    def test_given_up_while_it_is_decoded(self, devtools, speech):
        before = """
        const decode = OfflineAudioContext.prototype.decodeAudioData;
        OfflineAudioContext.prototype.decodeAudioData = async function (data) {
          const buffer = await decode.call(this, data);
          await new Promise((resolve) => (window.goOn = resolve));
          return buffer;
        };
        """

        async def talk(server, page):
            await page.drop(speech)
            await page.until("window.goOn !== undefined")
            assert await page.evaluate(STATE) == "Transcribing"
            await page.click("#record")
            await ready(page)
            await page.evaluate("goOn()")
            assert await transcribe_again(page, speech)
            return await page.evaluate("document.querySelectorAll('#finals h2').length")

        async def transcribe_again(page, path):
            await page.evaluate("window.goOn = undefined")
            await page.drop(path)
            await page.until("window.goOn !== undefined")
            await page.evaluate("goOn()")
            await ready(page)
            return await page.evaluate(FINALS)

        assert visit(devtools, talk, before) == 1

    def test_a_server_that_takes_only_shorter_messages(self, devtools, speech):
        async def talk(server, page):
            await page.drop(speech)
            await page.until(f"{PROBLEM} !== ''")
            return await page.evaluate(STATE), await page.evaluate(PROBLEM)

        state, problem = visit(devtools, talk, limits=Limits(message_bytes=1000))
        assert state == "Ready"
        assert "--message-bytes" in problem

    def test_a_full_server_is_waited_for(self, devtools, speech):
        async def talk(server, page):
            server._limits = Limits(clients=0)
            await page.drop(speech)
            await page.until(f"{STATE} === 'Waiting'")
            assert "you say" not in await page.evaluate(NOTICE)
            server._limits = Limits()
            await ready(page)
            return await page.evaluate(FINALS)

        assert visit(devtools, talk)


# What docs/deploy/nginx.conf does.
KEEP_METRICS = """
const ask = window.fetch;
window.fetch = async (address) =>
  address.startsWith("metrics") ? new Response("", { status: 403 }) : ask(address);
"""


class TestToken:
    @pytest.mark.parametrize("before", ["", KEEP_METRICS], ids=["alone", "behind a proxy that keeps metrics"])
    def test_is_asked_for(self, devtools, speech, before):
        async def talk(server, page):
            await page.drop(speech)
            await page.until("document.querySelector('#token-dialog').open")
            assert await page.evaluate("document.activeElement.id") == "token"
            title = "document.querySelector('#token-title').textContent"
            assert await page.evaluate(title) == "This server needs a token"
            await page.call("Input.insertText", text="wrong")
            await page.press("Enter", "\r")
            await page.until(f"{title} === 'The server does not know this token'")
            await page.call("Input.insertText", text="secret")
            await page.press("Enter", "\r")
            await page.until(f"{FINALS}.length > 0")
            await ready(page)

        visit(devtools, talk, before, tokens=("secret",))

    @pytest.mark.parametrize("by", ["button", "key"])
    def test_is_not_given(self, devtools, speech, by):
        """Then the files that waited are given up too, and not read with the next one."""

        async def talk(server, page):
            await page.drop(speech, SAMPLE)
            await page.until("document.querySelector('#token-dialog').open")
            await (page.click("#cancel") if by == "button" else page.press("Escape"))
            await page.until("!document.querySelector('#token-dialog').open")
            await page.drop(speech)
            await page.until("document.querySelector('#token-dialog').open")
            await page.call("Input.insertText", text="secret")
            await page.press("Enter", "\r")
            await page.until(f"{FINALS}.length > 0")
            await ready(page)
            titles = "[...document.querySelectorAll('#finals h2')].map((title) => title.textContent)"
            return await page.evaluate(titles)

        assert visit(devtools, talk, tokens=("secret",)) == [speech.name]

    def test_in_the_address(self, devtools, speech):
        async def talk(server, page):
            assert await page.evaluate("location.hash") == ""
            return await transcribe(page, speech)

        assert visit(devtools, talk, path="/#token=secret", tokens=("secret",))


def test_a_page_that_may_not_connect_says_so(devtools, speech):
    """As behind a proxy on the server's machine, whose name is not this machine's own."""

    async def run():
        async with (
            serving_shipped() as server,
            opened(devtools, f"http://asr.localhost:{server.port}/") as page,
        ):
            await page.drop(speech)
            await page.until(f"{PROBLEM} !== ''")
            assert await page.evaluate(STATE) == "Ready"
            return await page.evaluate(PROBLEM)

    assert "--origin" in asyncio.run(run())


class TestText:
    def test_copy_download_and_clear(self, devtools, speech, tmp_path):
        before = """
        navigator.clipboard.writeText = async (text) => { window.copied = text };
        HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download };
        const create = URL.createObjectURL;
        URL.createObjectURL = (blob) => {
          window.saved = blob.text();
          return create(blob);
        };
        """

        async def talk(server, page):
            text = "\n".join(await transcribe(page, speech))
            await page.click("#copy")
            await page.until("window.copied !== undefined")
            assert await page.evaluate("window.copied") == text
            await page.click("#download")
            assert await page.evaluate("window.saved") == text + "\n"
            assert (await page.evaluate("window.savedAs")).endswith(".txt")
            drawn = "[...document.querySelectorAll('#clear svg')].filter((e) => e.clientWidth)"
            bin_or_back = f"{drawn}.map((e) => e.getAttribute('class'))"
            assert await page.evaluate(bin_or_back) == ["bin"]
            await page.click("#clear")
            assert await page.evaluate(FINALS) == []
            assert await page.evaluate(bin_or_back) == ["back"]
            await page.click("#clear")  # undo
            assert "\n".join(await page.evaluate(FINALS)) == text

        visit(devtools, talk, before)


class TestForEverybody:
    @pytest.mark.parametrize("width", [320, 360])
    def test_a_small_screen(self, devtools, speech, width, tmp_path):
        name = tmp_path / ("a-name-without-any-end-" * 4 + ".wav")
        name.write_bytes(speech.read_bytes())
        wide = "document.documentElement.scrollWidth > innerWidth"

        async def talk(server, page):
            await page.resize(width, 568)
            assert not await page.evaluate(wide)
            await transcribe(page, name)
            assert not await page.evaluate(wide)
            return await page.evaluate(
                "[...document.querySelectorAll('#controls button')].map((button) => {"
                "const { top, bottom, left, right } = button.getBoundingClientRect();"
                "return [left, right, bottom - top, left >= 0 && right <= innerWidth] })"
            )

        places = visit(devtools, talk)
        assert all(right - left >= 44 and height >= 44 and inside for left, right, height, inside in places)
        assert all(before[1] <= after[0] for before, after in pairwise(places))
        assert len({height for _, _, height, _ in places}) == 2  # of the round one, and of those on one line

    def test_a_low_screen_begins_at_the_top(self, devtools, speech):
        place = "document.scrollingElement.scrollTop"
        drawn = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"

        async def talk(server, page):
            await page.resize(568, 320)
            await page.evaluate(drawn)
            assert await page.evaluate("document.documentElement.scrollHeight > innerHeight")
            at_first = await page.evaluate(place)
            for _ in range(3):
                await transcribe(page, speech)
            return at_first, await page.evaluate(place)

        at_first, later = visit(devtools, talk)
        assert at_first == 0
        assert later > 0

    def test_the_keyboard(self, devtools):
        async def talk(server, page):
            order = []
            for _ in range(2):
                await page.press("Tab")
                order.append(await page.evaluate("document.activeElement.id"))
            await page.press("Enter", "\r")
            await page.until(f"{STATE} === 'Listening'")
            assert await page.evaluate("document.activeElement.innerText.trim()") == "Stop listening"
            await page.press("Enter", "\r")
            await ready(page)
            return order

        assert visit(devtools, talk) == ["open", "record"]

    def test_the_screen_reader(self, devtools, speech):
        async def talk(server, page):
            await transcribe(page, speech)
            nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            named = [
                (node["role"]["value"], node.get("name", {}).get("value", ""))
                for node in nodes
                if not node.get("ignored")
            ]
            live = await page.evaluate(
                "[...document.querySelectorAll('#finals, #partial')].map((e) => e.getAttribute('aria-live'))"
            )
            return named, live

        named, live = visit(devtools, talk)
        buttons = [name for role, name in named if role == "button"]
        assert buttons == ["Open file", "Copy", "Start listening", "Download", "Clear"]
        assert ("log", "Settled text") in named
        assert live == ["polite", "off"]

    def test_dark_and_without_motion(self, devtools):
        look = (
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('.ring')).transitionDuration]"
        )

        async def talk(server, page):
            looks = []
            for scheme, motion in (("light", "no-preference"), ("dark", "reduce")):
                await page.resize(1000, 700, scheme, motion)
                looks.append(await page.evaluate(look))
            return looks

        light, dark = visit(devtools, talk)
        assert json.dumps(light) == '["rgb(250, 248, 244)", "0.08s"]'
        assert json.dumps(dark) == '["rgb(20, 22, 20)", "0s"]'
