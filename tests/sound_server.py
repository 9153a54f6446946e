"""A PulseAudio of one's own with a loudspeaker that is a microphone: what is played into it can be recorded.

PortAudio reaches it through ALSA's plug-in, as it reaches PulseAudio on any Linux desktop. Nothing else on
the machine notices.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import time
from pathlib import Path

_MODULES = (
    "module-native-protocol-unix auth-anonymous=1 socket={socket}",
    "module-null-sink sink_name=speaker rate=48000 channels=1",
)
_WAIT_SECONDS = 20.0


def find_missing() -> list[str]:
    """Return what is not installed of the programs and libraries that a sound server needs."""
    programs = ("pulseaudio", "paplay", "pacat", "parec", "pactl")
    missing = [program for program in programs if not shutil.which(program)]
    if not ctypes.util.find_library("portaudio"):
        missing.append("PortAudio")
    if not list(Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")):
        missing.append("ALSA's plug-in for PulseAudio")
    return missing


class SoundServer:
    """The server, running while it is used as a context. ``environment`` leads a process to it.

    Args:
        folder: an empty folder for its socket and settings.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_SERVER": f"unix:{folder / 'socket'}",
            "PULSE_SINK": "speaker",
            "PULSE_SOURCE": "speaker.monitor",
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SoundServer:
        self._folder.chmod(0o700)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, with its loudspeaker awake: an idle one passes nothing on for two seconds."""
        socket = self._folder / "socket"
        options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes"]
        loads = [word for module in _MODULES for word in ("-L", module.format(socket=socket))]
        self._spawn("pulseaudio", *options, "--realtime=no", "--high-priority=no", *loads)
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._call("pactl", "list", "short", "sinks").returncode:
            if time.monotonic() > deadline:
                raise TimeoutError("PulseAudio does not answer")
            time.sleep(0.02)
        self._spawn("pacat", "--playback", "--latency-msec=20", "--channels=1", "/dev/zero")
        with self._open("parec", "--latency-msec=20", stdout=subprocess.PIPE) as recorder:
            assert recorder.stdout
            recorder.stdout.read(1)
            recorder.kill()

    def stop(self) -> None:
        """End it at once, as if it had crashed: whoever records loses the device."""
        for process in reversed(self._running):
            process.kill()
            process.wait()
        self._running.clear()
        (self._folder / "socket").unlink(missing_ok=True)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return bool(self._running)

    def play(self, path: Path) -> None:
        """Play a file; return when it has been played."""
        self._call("paplay", str(path)).check_returncode()

    def _call(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, env=os.environ | self.environment, capture_output=True)

    def _spawn(self, *command: str) -> None:
        self._running.append(self._open(*command, stdout=subprocess.DEVNULL))

    def _open(self, *command: str, stdout: int) -> subprocess.Popen[bytes]:
        environment = os.environ | self.environment
        return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.DEVNULL)
