"""The images that are measured: what is in their layers, what is started, and when it counts as ready.

All stand on one layer of debootstrap's minbase. What follows is what a Dockerfile of such an image does: packages as their
distribution has them, with their documentation and byte code, then the application.
"""

from dataclasses import dataclass, field

from corpuslib import debian
from steps import Apt, Files, Pip, Script

ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")


@dataclass(frozen=True)
class Ready:
    """The first of these that happens: a line of output that contains `line`; an answer on a loopback port."""

    line: str = ""
    http: int = 0  # status 200 for GET / at this port
    redis: int = 0  # PONG for PING at this port


@dataclass(frozen=True)
class Workload:
    about: str
    layers: tuple  # above the base layer, each a tuple of steps
    command: tuple
    ready: Ready
    environment: tuple = ()
    user: str = ""
    config: dict = field(default_factory=dict, compare=False)


# With what scripts/corpus installs for a data team, an image of 1 GB.
FURTHER_PIP = ["statsmodels==0.14.2", "opencv-python-headless==4.9.0.80", "plotly==5.22.0"]
WEB_APP = '''
import flask, pandas, scipy.stats

app = flask.Flask(__name__)
orders = pandas.read_csv("/srv/app/orders.csv", parse_dates=["day"])

@app.get("/")
def summary():
    month = orders.groupby(orders.day.dt.month).amount.agg(["sum", "mean"])
    fit = scipy.stats.linregress(range(len(orders)), orders.amount)
    return flask.jsonify(months=month.to_dict("index"), slope=fit.slope)

app.run(host="127.0.0.1", port=8000)
'''
ORDERS = "day,amount\n" + "".join(f"2024-{month:02}-{day:02},{(month * 37 + day * 11) % 100}.5\n"
                                  for month in range(1, 13) for day in range(1, 29))

NODE_APP = '''
const express = require("express");
const app = express();
app.get("/", (request, response) => response.json({ path: request.path, agent: request.get("user-agent") }));
app.listen(8002, "127.0.0.1");
'''

SITE = '''
server {
    listen 127.0.0.1:8001;
    root /usr/share/nginx/html;
}
'''

# The port of Tomcat's HTTP connector is Debian's own.
SERVLET = '<%@ page import="java.time.Instant" %><html><body>It is <%= Instant.now() %></body></html>\n'

HELLO = '''
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
)

func main() {
	text, _ := json.Marshal(map[string]int{"status": http.StatusOK})
	fmt.Println("hello", string(text))
}
'''

# The cluster is made in the container, as the image of Docker's library does it.
POSTGRES = '''#!/bin/sh
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
initdb --auth=trust --username=postgres --pgdata=/var/lib/postgresql/data
exec postgres -D /var/lib/postgresql/data -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
'''

# Version 1 of what the last layer has in version 2.
OLD_PIP = ["numpy==1.26.3", "pandas==2.1.4", "flask==3.0.2"]
NEW_PIP = ["numpy==1.26.4", "pandas==2.2.2", "flask==3.0.3"]
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
BATCH = '''
import pathlib, sys
import numpy, pandas

sys.path.insert(0, "/srv/batch")
import rules

frames = [pandas.read_csv(path) for path in sorted(pathlib.Path("/srv/batch/data").glob("*.csv"))]
print("ready", rules.apply(numpy, pandas.concat(frames)), flush=True)
'''
OLD_RULES = 'def apply(numpy, frame):\n    raise NotImplementedError\n'
NEW_RULES = 'def apply(numpy, frame):\n    return round(float(numpy.median(frame.amount)), 3)\n'

WORKLOADS = {
    "webapp": Workload(
        "flask, pandas and scipy in an image of a data team: answers a request",
        ((Apt("python3", "ca-certificates", "libgomp1"),),
         (Pip(*debian.PIP_ONE, *debian.PIP_TWO, *FURTHER_PIP),),
         (Files({"/srv/app/main.py": WEB_APP, "/srv/app/orders.csv": ORDERS}),)),
        ("python3", "/srv/app/main.py"), Ready(http=8000)),
    "nginx": Workload(
        "answers a request",
        ((Apt("nginx", "ca-certificates", "curl"),),
         (Files({"/etc/nginx/conf.d/site.conf": SITE}), Script("rm /etc/nginx/sites-enabled/default"))),
        ("nginx", "-g", "daemon off;"), Ready(http=8001)),
    "redis": Workload(
        "answers PING",
        ((Apt("redis-server", "redis-tools", "ca-certificates"),),),
        ("redis-server", "--bind", "127.0.0.1", "--port", "6379", "--dir", "/tmp"), Ready(redis=6379)),
    "postgres": Workload(
        "makes a cluster and accepts connections",
        ((Apt("postgresql", "postgresql-contrib", "locales"),
          Script("install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data")),
         (Files({"/usr/local/bin/start": POSTGRES}), Script("chmod 755 /usr/local/bin/start"))),
        ("/usr/local/bin/start",), Ready(line="database system is ready to accept connections"), user="postgres"),
    "tomcat": Workload(
        "a servlet container on a JVM: compiles a page and answers with it",
        ((Apt("openjdk-17-jre-headless", "tomcat10", "ca-certificates"),),
         (Files({"/var/lib/tomcat10/webapps/ROOT/index.jsp": SERVLET}),
          Script("rm -f /var/lib/tomcat10/webapps/ROOT/index.html"))),
        ("/usr/share/tomcat10/bin/catalina.sh", "run"), Ready(http=8080),
        environment=("CATALINA_HOME=/usr/share/tomcat10", "CATALINA_BASE=/var/lib/tomcat10", "CATALINA_TMPDIR=/tmp",
                     "JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64")),
    "node": Workload(
        "an express application: answers a request",
        ((Apt("nodejs", "npm", "node-express", "ca-certificates"),),
         (Files({"/srv/app/main.js": NODE_APP}),)),
        ("node", "/srv/app/main.js"), Ready(http=8002), environment=("NODE_PATH=/usr/share/nodejs",)),
    "golang": Workload(
        "the toolchain: builds and runs a program",
        ((Apt("golang", "git", "gcc", "g++", "make", "pkg-config", "ca-certificates"),),
         (Files({"/go/src/hello/main.go": HELLO}),)),
        ("sh", "-c", "go version && go build -o /tmp/hello /go/src/hello/main.go && /tmp/hello"), Ready(line="hello {"),
        environment=("GOPATH=/go", "GO111MODULE=off", "GOFLAGS=-buildvcs=false", "HOME=/root")),
    "churn": Workload(
        "ten layers that replace and delete much of each other: a batch job reads its data",
        ((Apt("python3", "build-essential", "git"),),
         (Pip(*OLD_PIP),),
         (Files({"/srv/batch/main.py": BATCH, "/srv/batch/rules.py": OLD_RULES}),
          Script("mkdir /srv/batch/data; for n in $(seq 400); do { echo amount; seq $n $((n + 500)); } >/srv/batch/data/$n.csv; done")),
         (Script("dpkg-query -W -f '${Package}\\n' 'gcc*' 'g++*' 'cpp*' make 'libgcc-1?-dev' 'libstdc++-1?-dev' git "
                 "| xargs dpkg --purge --force-depends"),),
         (Script(f"rm -rf {PACKAGES}/*"), Pip(*NEW_PIP)),
         (Script(f"find {PACKAGES} -depth -type d -name tests -exec rm -r {{}} +"),),
         (Script("useradd --create-home batch; chown -R batch:batch /srv/batch"),),
         (Script("rm /srv/batch/data/[1-3]*; for n in 1 2 3; do { echo amount; seq 100000; } >/srv/batch/data/$n.csv; done"),),
         (Files({"/srv/batch/rules.py": NEW_RULES}), Script("rm -rf /usr/share/doc/*; chown -R batch /srv/batch"))),
        ("python3", "/srv/batch/main.py"), Ready(line="ready "), user="batch"),
}
