//! lazo as it is packaged, under a real systemd: whatever its units go through, a container reads on.

mod orders;

use crate::support::{
    Scratch,
    metrics::until,
    output_of,
    served::{NAME, Served},
    systemd::{Machine, REGISTRY},
};

/// The name of the container.
const CONTAINER: &str = "reader";

/// A container of the image whose files are read by its own program.
struct Container<'a> {
    machine: &'a Machine<'a>,
    served: &'a Served,
}

impl<'a> Container<'a> {
    fn start(machine: &'a Machine<'a>, served: &'a Served) -> Self {
        let image = format!("{REGISTRY}/{NAME}");
        machine.run("lazo", ["pull", &image]);
        let run = ["run", "--detach", "--null-io", "--snapshotter", "lazo", "--cpu-shares", "0"];
        machine.run("ctr", run.into_iter().chain([&*image, CONTAINER, "/bin/sleep", "1000000"]));
        Self { machine, served }
    }

    /// Reads a file that nobody has read before.
    fn read(&self, when: &str) {
        let original = self.served.original();
        let file = original.next();
        let path = format!("/{}", file.to_str().expect("a plain path"));
        let mut exec = self.machine.command("timeout", ["20", "ctr", "task", "exec", "--exec-id"]);
        let read = output_of(exec.args(["read", CONTAINER, "/bin/cat", &path]));
        assert!(read.status.success(), "{when}: {path}: {}", String::from_utf8_lossy(&read.stderr));
        let expected = std::fs::read(original.root().join(file)).expect("the original");
        assert!(read.stdout == expected, "{when}: {path} is wrong");
    }

    fn end(&self) {
        self.machine.run("ctr", ["task", "kill", "--signal", "KILL", CONTAINER]);
        until("the container has ended", || {
            output_of(&mut self.machine.command("ctr", ["task", "rm", CONTAINER])).status.success().then_some(())
        });
        self.machine.run("ctr", ["container", "rm", CONTAINER]);
    }
}

/// Waits until containerd answers.
fn answers(machine: &Machine<'_>) {
    until("containerd answers", || output_of(&mut machine.command("ctr", ["version"])).status.success().then_some(()));
}

/// Waits until the daemon is active, and containerd answers.
fn settled(machine: &Machine<'_>) {
    until("the daemon is active", || (machine.property("lazo", "ActiveState") == "active").then_some(()));
    answers(machine);
}

#[test]
fn a_container_reads_on_whatever_happens_to_the_units() {
    let (scratch, served) = (Scratch::new(), Served::new("debian"));
    let machine = Machine::boot(&scratch, &served.storage());
    assert!(machine.journal("lazo").contains("images are served by the kernel's EROFS"), "{}", machine.journal("lazo"));
    let container = Container::start(&machine, &served);
    container.read("at first");
    let systemctl = |line: &str| machine.run("systemctl", line.split(' '));
    for line in [
        "restart lazo",
        "stop lazo",
        "start lazo",
        "reload lazo",
        "kill lazo",
        "kill --signal=KILL --kill-who=main lazo",
        "kill --signal=KILL --kill-who=all lazo",
        "kill --signal=HUP lazo",
        "restart lazo-snapshotter",
        "kill --signal=KILL lazo-snapshotter",
        "restart containerd",
        "restart lazo lazo-snapshotter containerd",
        "stop lazo lazo-snapshotter.socket lazo-snapshotter containerd",
        "start lazo-snapshotter.socket containerd lazo",
        "restart lazo",
    ] {
        systemctl(line);
        let stopped = line.starts_with("stop");
        // What reads is a program in the container, which containerd starts.
        if stopped && line.contains("containerd") {
            continue;
        }
        answers(&machine);
        container.read(line);
        if !stopped {
            settled(&machine);
        }
    }
    // Another container starts as ever, through the sockets that systemd holds.
    let image = format!("{REGISTRY}/{NAME}");
    let run = ["run", "--rm", "--snapshotter", "lazo", "--cpu-shares", "0", &image, "other", "/bin/echo", "hello"];
    let said = machine.run("ctr", run);
    assert_eq!(said, "hello\n");
    container.end();
    machine.run("ctr", ["image", "rm", "--sync", &image]);
    systemctl("stop lazo");
    until("nothing is left of the daemon", || {
        let left = output_of(&mut machine.command("pgrep", ["--full", "lazo daemon"]));
        (!left.status.success()).then_some(())
    });
    assert_eq!(machine.property("lazo", "Result"), "success");
}

/// The filter of this setting answers ENOSYS to openat2. An administrator may add it, and other filters like it.
#[test]
fn a_filter_of_system_calls_costs_nothing_or_is_named() {
    let (scratch, served) = (Scratch::new(), Served::new("debian"));
    let machine = Machine::boot(&scratch, &served.storage());
    let restart_with = |setting: &str| {
        let script = format!(
            "mkdir -p /etc/systemd/system/lazo.service.d; echo '[Service]\n{setting}' > /etc/systemd/system/lazo.service.d/test.conf; systemctl daemon-reload"
        );
        machine.run("sh", ["-c", &script]);
        output_of(&mut machine.command("timeout", ["5", "systemctl", "restart", "lazo"])).status.success()
    };
    machine.run("journalctl", ["--rotate", "--vacuum-time=1s"]);
    assert!(restart_with("RestrictSUIDSGID=yes"));
    assert!(!machine.journal("lazo").contains("FUSE trees"), "{}", machine.journal("lazo"));
    let mount = format!("docker://{REGISTRY}/{NAME}");
    machine.run("mkdir", ["/srv/image"]);
    machine.run("lazo", ["mount", "--mode", "erofs", &mount, "/srv/image"]);
    assert!(machine.run("ls", ["/srv/image"]).contains("usr"));
    machine.run("lazo", ["umount", "/srv/image"]);
    assert!(!restart_with("SystemCallFilter=~fsopen:ENOSYS open_tree:ENOSYS"), "it cannot serve");
    let journal = machine.journal("lazo");
    assert!(journal.contains("these system calls are missing: fsopen, open_tree"), "{journal}");
}
