"""A look-up on the internet answers within seconds, whatever the network does."""

import contextlib
import functools
import hashlib
import http.server
import socket
import threading
import time
import urllib.request
from urllib.error import HTTPError, URLError

import pytest
from test_pipeline import COUNT, cell, make_project

from fer_utils import internet
from fer_utils.internet import why_out_of_reach
from fer_utils.models import pretrained
from fer_utils.models.pretrained import imagenet_weights

URL = "https://weights.example.org/models/resnet18.pth"


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.delenv("FER_OFFLINE", raising=False)
    internet.server_problem.cache_clear()
    yield
    internet.server_problem.cache_clear()


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Every request, refused."""
    urls = []

    def refuse(request, timeout):
        urls.append(request.full_url)
        raise URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return urls


def test_a_resolver_that_hangs_costs_three_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(60))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    started = time.monotonic()
    assert imagenet_weights("resnet18") is None
    assert imagenet_weights("vgg16_bn") is None  # on the same server: not asked again
    assert time.monotonic() - started < internet.SECONDS + 1
    assert capsys.readouterr().out.count("out of reach (no answer within 3 seconds)") == 2


def test_a_server_is_asked_once_and_its_refusal_named(asked):
    assert why_out_of_reach(URL) == why_out_of_reach(URL + "2") == "URLError"
    assert asked == ["https://weights.example.org"]


def test_offline_means_not_to_look_at_all(asked, monkeypatch):
    monkeypatch.setenv("FER_OFFLINE", "1")
    assert why_out_of_reach(URL) == "FER_OFFLINE=1" and asked == []


def test_any_answer_will_do(monkeypatch):
    def nothing_here(request, timeout):
        raise HTTPError(request.full_url, 404, "Not Found", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", nothing_here)
    assert why_out_of_reach(URL) == ""


def test_a_server_that_accepts_and_says_nothing_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []
        threading.Thread(target=lambda: kept.append(server.accept()), daemon=True).start()
        assert why_out_of_reach(f"http://127.0.0.1:{server.getsockname()[1]}/x", seconds=0.5) in (
            "TimeoutError",
            "no answer within 0.5 seconds",
        )


CONTENT = bytes(range(256)) * 8000  # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]


@contextlib.contextmanager
def server(answer):
    """A server on this machine; answer(send) sends the content in its own way. Gives the URL of the file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has given up
                answer(self.wfile.write)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/net.pth"
        running.shutdown()


def hang(*args, **kwargs):
    time.sleep(10)
    raise OSError("at last")


def stall(send):
    send(CONTENT[:500_000])
    time.sleep(60)


def drip(send):
    for byte in CONTENT:
        send(bytes([byte]))
        time.sleep(0.1)


def say_nothing(send):
    time.sleep(60)


@pytest.mark.parametrize("answer", [say_nothing, stall, drip])
def test_a_download_that_stalls_is_given_up_within_seconds(tmp_path, answer):
    with server(answer) as url:
        started = time.monotonic()
        assert internet.download(url, tmp_path / "net.pth", SHA256, patience=0.5) == "less than 1 MB in 0.5 seconds"
        assert time.monotonic() - started < 10
    assert not list(tmp_path.iterdir())


def test_a_name_server_that_hangs_during_the_download_costs_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    assert internet.download(URL, tmp_path / "net.pth", SHA256, patience=0.5)
    assert time.monotonic() - started < 8 and not list(tmp_path.iterdir())


def test_a_complete_download_is_kept(tmp_path):
    def two_parts(send):
        send(CONTENT[:1_000_000])
        time.sleep(0.3)
        send(CONTENT[1_000_000:])

    with server(two_parts) as url:
        assert internet.download(url, tmp_path / "cache" / "net.pth", SHA256, patience=5) == ""
    assert (tmp_path / "cache" / "net.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("answer", [lambda send: send(CONTENT[:-1] + b"x"), lambda send: send(CONTENT[:1000])])
def test_a_download_with_other_content_is_not_kept(tmp_path, answer):
    with server(answer) as url:
        assert (
            internet.download(url, tmp_path / "net.pth", SHA256, patience=5)
            == "the file that arrived has another checksum"
        )
    assert not list(tmp_path.iterdir())


def test_weights_that_stall_are_said_and_training_starts_from_scratch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "why_out_of_reach", lambda url: "")
    monkeypatch.setattr(pretrained, "download", functools.partial(internet.download, patience=0.3))
    monkeypatch.setattr(urllib.request, "urlopen", hang)
    started = time.monotonic()
    assert imagenet_weights("resnet18") is None
    assert time.monotonic() - started < 8
    assert "out of reach (less than 1 MB in 0.3 seconds): the network starts from" in capsys.readouterr().out


def test_a_run_looks_once_and_spares_its_notebooks_the_look_up(tmp_path, asked, monkeypatch, capsys):
    monkeypatch.setenv("FER_OFFLINE", "")  # so that what the run sets is undone after the test
    project = make_project(tmp_path / "project")
    tell = "import os; print('told', os.environ['FER_OFFLINE'])"
    project.write_notebook("01_count", cell(COUNT), cell(tell), parameters="pretrained = 'auto'")
    assert project.run("--only", "01") == 0
    assert "No internet (URLError)" in capsys.readouterr().out
    [log] = (project.root / "outputs" / "work").glob("*/01_count.log")
    assert "told 1" in log.read_text()
    assert asked == ["https://download.pytorch.org"]


def test_a_run_without_pretrained_networks_does_not_look(tmp_path, asked):
    assert make_project(tmp_path / "project").run("--only", "01") == 0 and asked == []
