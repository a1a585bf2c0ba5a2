//! A real nginx.

use std::{net::TcpListener, path::PathBuf};

use super::run;

/// An nginx on a loopback port, gone on drop.
pub(crate) struct Nginx {
    config: PathBuf,
    pub(crate) port: u16,
    pub(crate) directory: tempfile::TempDir,
}

impl Nginx {
    /// Starts one with a `server` of these directives after its `listen`, which ends with `listen`; DIR in them is its
    /// directory.
    pub(crate) fn start(listen: &str, directives: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Files are read by a worker without rights.
        run("chmod", &["755", directory.path().to_str().unwrap()]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directives = directives.replace("DIR", directory.path().to_str().unwrap());
        let text = format!(
            "pid DIR/pid; error_log DIR/error.log; events {{}}\n\
             http {{ access_log DIR/access.log; proxy_temp_path DIR/proxy; client_body_temp_path DIR/body;\n\
             fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s; client_max_body_size 0;\n\
             server {{ listen 127.0.0.1:{port} {listen};\n{directives}\n}} }}\n"
        );
        let config = directory.path().join("nginx.conf");
        std::fs::write(&config, text.replace("DIR", directory.path().to_str().unwrap())).unwrap();
        // Returns when it listens.
        run("nginx", &["-c", config.to_str().unwrap()]);
        Self { config, port, directory }
    }

    /// Lines of its access log.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(std::process::Command::new("nginx").args(["-s", "stop", "-c"]).arg(&self.config).output());
    }
}
