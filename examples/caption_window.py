"""A caption window: the last words that were said, in large letters above all other windows.

    python examples/caption_window.py

Escape closes it. Tk comes with most Pythons (Debian: apt install python3-tk).
"""

import argparse
import queue
import threading
import tkinter as tk

import onebest

POLL_MS = 50
SHOWN_CHARACTERS = 120


class CaptionWindow(tk.Tk):
    """A window that shows the events of a listener, which runs in a thread of its own."""

    def __init__(self, listener: onebest.Listener):
        super().__init__()
        self.title("onebest captions")
        self.attributes("-topmost", True)
        self.configure(background="black")
        self.caption = tk.Label(self, font=("", 28), fg="white", bg="black", wraplength=900, justify="left")
        self.caption.pack(padx=20, pady=20)
        self.bind("<Escape>", lambda event: self.destroy())
        self._listener, self._said = listener, ""
        self._events: queue.SimpleQueue[onebest.Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        self._show_events()

    def destroy(self) -> None:
        """Close the window and the microphone."""
        self._listener.stop()
        self._thread.join()
        super().destroy()

    def _listen(self) -> None:
        for event in self._listener:
            self._events.put(event)

    def _show_events(self) -> None:
        while not self._events.empty():
            self._show(self._events.get())
        self.after(POLL_MS, self._show_events)

    def _show(self, event: onebest.Event) -> None:
        if isinstance(event, onebest.Notice):
            self.caption["text"] = event.message
            return
        text = f"{self._said} {event.text}".strip()
        if len(text) > SHOWN_CHARACTERS:
            text = text[-SHOWN_CHARACTERS:].partition(" ")[2]
        if isinstance(event, onebest.FinalText):
            self._said = text
        self.caption["text"] = text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="a number or a part of a name; see onebest mic --list-devices")
    CaptionWindow(onebest.listen(device=parser.parse_args().device)).mainloop()


if __name__ == "__main__":
    main()
