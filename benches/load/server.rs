//! The server under load.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

pub(crate) struct Server {
    child: Child,
    pub(crate) dir: PathBuf,
    pub(crate) address: String,
    pub(crate) admin_token: String,
    /// From the start of the process to `/readyz`.
    pub(crate) ready_after: Duration,
}

impl Server {
    pub(crate) async fn start(dir: PathBuf) -> Self {
        let addresses = dir.join("server.json");
        let _gone = std::fs::remove_file(&addresses);
        let log = std::fs::File::options().create(true).append(true).open(dir.join("server.log")).expect("a log");
        let started = Instant::now();
        let binary = env!("CARGO_BIN_EXE_nexxus");
        let mut command = match std::env::var("NEXXUS_LOAD_CORE") {
            Ok(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core, binary]);
                command
            }
            Err(_) => Command::new(binary),
        };
        let child = command
            .args(["serve", "--data"])
            .arg(&dir)
            .current_dir(&dir)
            // It would be taken for a setting.
            .env_remove("NEXXUS_LOAD_CORE")
            .env("NEXXUS_API__LISTEN", "127.0.0.1:0")
            .env("NEXXUS_WORKERS__WEBSOCKET__PORT", "0")
            .envs([
                ("NEXXUS_LIMITS__ENABLED", "false"),
                ("NEXXUS_LOG__LEVEL", "warn"),
                ("NEXXUS_DEVICES__KEEP_FOR", "1h"),
                // However full the disk is, the work is the same.
                ("NEXXUS_DATA__RESERVE", "0"),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let mut server =
            Self { child, dir, address: String::new(), admin_token: String::new(), ready_after: Duration::ZERO };
        while !server.is_ready(&addresses).await {
            assert!(started.elapsed() < Duration::from_secs(120), "the server is not ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.ready_after = started.elapsed();
        server
    }

    async fn is_ready(&mut self, addresses: &PathBuf) -> bool {
        let Ok(text) = std::fs::read(addresses) else { return false };
        let Ok(addresses) = serde_json::from_slice::<Value>(&text) else { return false };
        let Some(url) = addresses["api"].as_str() else { return false };
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        if tokio::net::TcpStream::connect(&address).await.is_err() {
            return false;
        }
        if super::client::Client::connect(&address, "none", "none").await.call("GET", "/readyz", "").await.0 != 200 {
            return false;
        }
        self.address = address;
        self.admin_token = std::fs::read_to_string(self.dir.join("admin_token")).expect("a token").trim().to_owned();
        true
    }

    /// Resident memory and CPU seconds so far, from /proc.
    pub(crate) fn usage(&self) -> (u64, f64) {
        let pid = self.child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok());
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: f64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        (kib.unwrap_or(0), ticks / 100.0)
    }

    /// The most memory that was ever resident, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
        kib.unwrap_or(0)
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> PathBuf {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        std::mem::take(&mut self.dir)
    }

    pub(crate) fn stop(mut self) -> PathBuf {
        let _status = Command::new("kill").arg(self.child.id().to_string()).status();
        let _status = self.child.wait();
        std::mem::take(&mut self.dir)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
