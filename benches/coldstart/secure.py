"""nginx before a registry, for subjects that talk nothing but HTTPS to it."""

import subprocess
import time
from pathlib import Path

PORT = 5443
CONFIG = """daemon off; error_log {work}/nginx.log; pid {work}/nginx.pid; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off; proxy_buffering off; proxy_request_buffering off; client_max_body_size 0; keepalive_requests 1000000;
    {temporary}
    upstream registry {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}
    server {{
        listen {address}:{port} ssl; ssl_certificate {work}/cert.pem; ssl_certificate_key {work}/key.pem;
        location / {{ proxy_pass http://registry; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }}
    }}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Secure:
    """While `with` lasts. `authority`: the certificate to trust."""

    def __init__(self, inside: list, address: str, upstream: str, work: Path):
        self.inside, self.address, self.upstream, self.work = inside, address, upstream, work / "tls"
        self.host, self.authority = f"{address}:{PORT}", self.work / "cert.pem"

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                        "-subj", "/CN=registry", "-addext", f"subjectAltName=IP:{self.address}",
                        "-keyout", self.work / "key.pem", "-out", self.authority], check=True, stderr=subprocess.DEVNULL)
        temporary = " ".join(f"{kind}_temp_path {self.work}/{kind};" for kind in TEMPORARY)
        config = self.work / "nginx.conf"
        config.write_text(CONFIG.format(work=self.work, temporary=temporary, upstream=self.upstream, address=self.address, port=PORT))
        self.process = subprocess.Popen([*self.inside, "nginx", "-c", config, "-e", self.work / "nginx.log"])
        probe = [*self.inside, "bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{PORT}"]
        while subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode and self.process.poll() is None:
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
