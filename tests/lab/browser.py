"""A headless Chromium that is driven as a person would: with the mouse and the keyboard. It speaks
the DevTools protocol over a pipe, which needs no package; and no network."""

import fcntl
import json
import os
import select
import subprocess
import time

from pages import CHROMIUM

# Of a key its code, and the text that it types
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "Backspace": (8, ""), "Delete": (46, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
    "End": (35, ""), "Home": (36, ""),
}  # fmt: skip
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
).split()


class Browser:
    """console: what pages said there, errors included."""

    def __init__(self, profile, patience: float = 120):
        self.patience, self.number, self.rest, self.console = patience, 0, b"", []
        (theirs, self.to), (self.of, theirs_too) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs, theirs_too)]

        def pipes():  # in the new process: commands come in at 3, answers go out at 4
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (theirs, theirs_too, *high):
            os.close(fd)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.to)
        os.close(self.of)

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        sent = json.dumps(message).encode() + b"\0"
        while sent:  # a pipe takes a part of what is long
            sent = sent[os.write(self.to, sent) :]
        while (answer := self._read()).get("id") != self.number:
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.console.append(json.dumps(answer["params"]))
            elif answer.get("method") == "Log.entryAdded":
                self.console.append(answer["params"]["entry"]["text"])
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self) -> dict:
        end = time.monotonic() + self.patience
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.of], [], [], max(0, end - time.monotonic()))
            part = os.read(self.of, 1 << 20) if ready else b""
            assert part, f"Chromium said nothing for {self.patience} s, or is gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression: str):
        """The value of an expression in the page; of a promise, what it comes to."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, page, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        """A page in a window of that width, loaded; where it has a promise `ready`, kept, too."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        self.js("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")
        self.js("typeof ready === 'undefined' ? null : ready.then(() => null)")

    def click(self, selector: str, nth: int = 0) -> None:
        x, y = self.js(
            f"""(() => {{
              const node = document.querySelectorAll({json.dumps(selector)})[{nth}];
              node.scrollIntoView({{block: "center"}});
              const box = node.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        at = dict(x=x, y=y, button="left", clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def press(self, key: str, times: int = 1, shift: bool = False) -> None:
        """A key of KEYS, or any letter."""
        code, text = KEYS.get(key, (ord(key[0].upper()), key))
        held = dict(key=key, windowsVirtualKeyCode=code, modifiers=8 * shift)
        for _ in range(times):
            down = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=down, text=text, **held)
            self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    def type(self, text: str) -> None:
        for letter in text:
            self.press(letter)

    def tab_to(self, selector: str, back: bool = False, most: int = 40) -> None:
        """Press Tab, or Shift and Tab, until the selector's element has the focus."""
        for _ in range(most):
            if self.js(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            self.press("Tab", shift=back)
        raise AssertionError(f"Tab does not reach {selector}")
