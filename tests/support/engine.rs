//! A machine with a Docker Engine: a real dockerd and the real daemon, in namespaces of their own.
//!
//! Docker looks for the plugin `cinder` at one place of the machine, `/run/docker/plugins`. So each
//! of these machines has its own `/run`, mounts, processes and container network, whatever Docker
//! does on the machine that runs the tests. The files are shared: programs, `/dev`, `/tmp`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::{Cloud, binary};
use crate::transcript::{self, COLUMNS, Listing};

/// Programs come from the distribution's packages before anything that was put beside them.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// The first process: it reaps the others, and they end with it.
const INIT: &str = r#"
set -e
# This is a copy of all mounts: those of other tests would keep their devices busy.
awk -v tmp="$TMP/" '
    index($5, tmp) == 1 && / - [^ ]+ \/dev\// { at[++count] = $5 }
    END { while (count) print at[count--] }' /proc/self/mountinfo | xargs -r -n 1 umount --lazy
mount -t tmpfs tmpfs /run
ip link set lo up
touch "$DIR/ready"
sleep infinity &
wait
"#;

/// The images of the posts, with their default commands. All are busybox here.
const IMAGES: [(&str, &str); 4] = [
    ("ubuntu", "/bin/bash"),
    ("redis", "sleep infinity"),
    ("jgriffith/jgriffith-webbase", "sleep infinity"),
    ("module/python-3-base", "python3"),
];

/// Programs of those images that busybox has under another name.
const STAND_INS: [(&str, &str); 2] = [
    ("bash", "#!/bin/sh\nexec sh \"$@\"\n"),
    // python3 -m http.server PORT
    ("python3", "#!/bin/sh\nexec httpd -f -p \"$3\"\n"),
];

/// Where the second engine of a machine answers.
pub const OTHER_ENGINE: &str = "unix:///run/docker-2.sock";

/// A machine. Everything on it ends when it is dropped.
pub struct Machine {
    pub name: String,
    dir: TempDir,
    /// `unshare`: its namespaces are the machine's; its end is the end of all processes there.
    namespaces: Child,
}

impl Machine {
    /// Boots it, with the plugin and an engine that has the images of the posts.
    ///
    /// `None`, said loudly, where no engine can run; with `CI=true` that is a failure.
    pub async fn boot(name: &str, cloud: &Cloud, more: Value) -> Option<Self> {
        let machine = Self::unshare(name).await;
        machine.write_config(cloud.sandbox.config(), more);
        machine.start_plugin().await;
        machine.start_engine().await.or_else(skipped).ok()?;
        machine.import_images().await;
        Some(machine)
    }

    /// Boots it without the plugin, and with an engine in the network of the tests, where the cloud
    /// is: what the engine runs as its plugin is there too. Containers have no network. `None` as in
    /// [`Self::boot`].
    pub async fn boot_for_a_managed_plugin(name: &str) -> Option<Self> {
        let machine = Self::unshare(name).await;
        machine.start_engine_beside_the_cloud().await.or_else(skipped).ok()?;
        machine.import_images().await;
        Some(machine)
    }

    /// The engine of [`Self::boot_for_a_managed_plugin`].
    pub async fn start_engine_beside_the_cloud(&self) -> Result<(), String> {
        self.start_engine_in(false, "--bridge=none", json!({})).await
    }

    async fn unshare(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let log = dir.path().join("unshare.log");
        let mut namespaces = Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--propagation", "private"])
            .args(["--fork", "--kill-child", "--mount-proc", "sh", "-c", INIT])
            .env("PATH", PATH)
            .env("DIR", dir.path())
            .env("TMP", std::env::temp_dir())
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !dir.path().join("ready").exists() {
            let ended = namespaces.try_wait().unwrap();
            let said = fs::read_to_string(&log).unwrap();
            assert!(ended.is_none() && Instant::now() < end, "no namespaces: {said}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { name: name.to_owned(), dir, namespaces }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where people type.
    pub fn home(&self) -> PathBuf {
        self.dir().join("home")
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir().join("config.json")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.dir().join("mount")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    fn write_config(&self, mut config: Map<String, Value>, more: Value) {
        let own = json!({
            "MountPoint": self.mount_point(),
            "StateDir": self.state_dir(),
            "ConnectorHost": self.name,
        });
        for keys in [own, more] {
            let Value::Object(keys) = keys else { panic!("not an object") };
            config.extend(keys);
        }
        let path = self.config_path();
        fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A command on this machine. `with_network`: in the network of the containers; the cloud is
    /// only in that of the tests.
    fn command(&self, with_network: bool, line: &str) -> Command {
        let namespaces = format!("/proc/{}/ns", self.namespaces.id());
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={namespaces}/mnt"));
        command.arg(format!("--pid={namespaces}/pid_for_children"));
        if with_network {
            command.arg(format!("--net={namespaces}/net"));
        }
        command
            .arg(format!("--wd={}", self.home().display()))
            .args(["sh", "-c", line])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.home())
            .env("DIR", self.dir())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// Runs what a person types here. It may wait for the cloud, which runs on the test's thread.
    pub async fn run(&self, line: &str) -> Output {
        let mut command = self.command(true, line);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// As [`Self::run`], where the cloud can be reached, and containers cannot.
    pub async fn run_beside_the_cloud(&self, line: &str) -> Output {
        let mut command = self.command(false, line);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// The output of a command that must succeed.
    pub async fn sh(&self, line: &str) -> String {
        let output = self.run(line).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}\n{}", self.logs());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Waits until a command succeeds.
    pub async fn until(&self, line: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.run(line).await;
            if output.status.success() {
                return;
            }
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(Instant::now() < end, "still fails: {line}: {errors}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a server, with its process id, as this machine sees it, in `NAME.pid`.
    async fn start(&self, with_network: bool, name: &str, line: &str) {
        let line = format!("{line} >>$DIR/{name}.log 2>&1 </dev/null & echo $! >$DIR/{name}.pid");
        let mut command = self.command(with_network, &line);
        let started = tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap();
        assert!(started.success());
    }

    pub async fn start_plugin(&self) {
        self.start_plugin_with("").await;
    }

    /// As [`Self::start_plugin`], with `NAME=VALUE` in its environment.
    pub async fn start_plugin_with(&self, variable: &str) {
        let binary = binary();
        let line =
            format!("env {variable} '{}' --config $DIR/config.json --debug", binary.display());
        self.start(false, "plugin", &line).await;
        self.until(
            "curl -sf --unix-socket /run/docker/plugins/cinder.sock -d '' http://x/Plugin.Activate",
        )
        .await;
    }

    /// Starts dockerd and waits until it answers.
    pub async fn start_engine(&self) -> Result<(), String> {
        self.start_engine_with(json!({})).await
    }

    /// As [`Self::start_engine`], with a `daemon.json`.
    pub async fn start_engine_with(&self, settings: Value) -> Result<(), String> {
        self.start_engine_in(true, "", settings).await
    }

    async fn start_engine_in(
        &self,
        with_network: bool,
        more: &str,
        settings: Value,
    ) -> Result<(), String> {
        fs::write(self.dir().join("daemon.json"), settings.to_string()).unwrap();
        let line = format!(
            "dockerd --config-file $DIR/daemon.json --data-root $DIR/docker \
             --iptables=false --ip6tables=false --storage-driver=vfs {more}"
        );
        self.start(with_network, "dockerd", &line).await;
        let end = Instant::now() + Duration::from_secs(60);
        while !self.run("docker version").await.status.success() {
            let runs = self.run("kill -0 $(cat $DIR/dockerd.pid)").await.status.success();
            if !runs || Instant::now() > end {
                return Err(last_lines(&self.log("dockerd"), 5));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Starts one more dockerd, which answers at [`OTHER_ENGINE`]: the same plugin serves it.
    pub async fn start_other_engine(&self) {
        let line = format!(
            "dockerd --config-file $DIR/daemon.json --data-root $DIR/docker-2 \
             --exec-root /run/docker-2 --pidfile /run/docker-2.pid --host {OTHER_ENGINE} \
             --bridge=none --iptables=false --ip6tables=false --storage-driver=vfs"
        );
        self.start(true, "dockerd-2", &line).await;
        self.until(&format!("docker --host {OTHER_ENGINE} version")).await;
        self.sh(&format!("tar -C $DIR/image -c . | docker --host {OTHER_ENGINE} import - ubuntu"))
            .await;
    }

    /// How many users the plugin counts for a volume.
    pub async fn users(&self, volume: &str) -> Value {
        let rows: Vec<Value> = serde_json::from_str(&self.liabilities().await).unwrap();
        rows.iter().find(|row| row["name"] == volume).map_or(json!(0), |row| row["users"].clone())
    }

    /// `kill -9` of `plugin` or `dockerd`.
    pub async fn kill(&self, name: &str) {
        self.end(name, "KILL").await;
    }

    /// Stops `plugin` or `dockerd` in good order.
    pub async fn stop(&self, name: &str) {
        self.end(name, "TERM").await;
    }

    async fn end(&self, name: &str, signal: &str) {
        self.sh(&format!("kill -{signal} $(cat $DIR/{name}.pid)")).await;
        self.until(&format!("! kill -0 $(cat $DIR/{name}.pid)")).await;
    }

    async fn import_images(&self) {
        let bin = self.dir().join("image/bin");
        fs::create_dir_all(&bin).unwrap();
        for (name, script) in STAND_INS {
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.sh("cd $DIR/image; mkdir -m 1777 tmp; cp $(command -v busybox) bin/busybox; \
             for applet in $(busybox --list); do ln -s busybox bin/$applet 2>/dev/null || :; done")
            .await;
        for (image, command) in IMAGES {
            self.sh(&format!(
                "tar -C $DIR/image -c . | docker import --change 'CMD {command}' - {image}"
            ))
            .await;
        }
    }

    /// Mounts of volumes on this machine, outside containers.
    pub fn mounts(&self) -> Vec<String> {
        let below = format!("{}/", self.mount_point().display());
        fs::read_to_string(format!("/proc/{}/mountinfo", self.namespaces.id()))
            .unwrap()
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| at.starts_with(&below))
            .map(str::to_owned)
            .collect()
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn logs(&self) -> String {
        let (plugin, engine) = (self.log("plugin"), self.log("dockerd"));
        format!("plugin:\n{plugin}\ndockerd:\n{}", last_lines(&engine, 20))
    }

    /// Removes all containers and shows that then nothing is held here any more.
    pub async fn clear(&self) {
        self.sh("docker ps --all --quiet | xargs -r docker rm --force --volumes").await;
        let end = Instant::now() + Duration::from_secs(30);
        while !(self.mounts().is_empty() && self.liabilities().await == "[]") {
            let (mounts, rows) = (self.mounts(), self.liabilities().await);
            assert!(Instant::now() < end, "{mounts:?} {rows}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the driver's own program prints on this machine, which must go well.
    pub async fn driver(&self, words: &str) -> String {
        // As the plugin, it may ask the cloud.
        let line = format!("'{}' --config $DIR/config.json {words}", binary().display());
        let output = self.run_beside_the_cloud(&line).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}: {errors}\n{}", self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the journal says is held here, or to be undone: JSON.
    pub async fn liabilities(&self) -> String {
        self.sh(&format!(
            "'{}' --config $DIR/config.json status --json | tr -d ' \\n'",
            binary().display()
        ))
        .await
    }
}

#[async_trait]
impl transcript::Machine for Machine {
    fn prompt(&self) -> &str {
        &self.name
    }

    async fn run(&self, line: &str) -> Output {
        Self::run(self, line).await
    }

    fn masks(&self) -> Vec<(String, String)> {
        vec![(self.dir().display().to_string(), format!("<{}>", self.name))]
    }
}

#[async_trait]
impl Listing for Cloud {
    async fn rows(&self) -> Vec<[String; COLUMNS.len()]> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            // As Python prints it.
            Value::Null => "None".to_owned(),
            other => other.to_string(),
        };
        let row = |volume: &Value| {
            let attachments = volume["attachments"].as_array().unwrap();
            let servers: Vec<String> =
                attachments.iter().map(|attachment| text(&attachment["server_id"])).collect();
            let [id, status, name, size, volume_type, bootable] =
                ["id", "status", "name", "size", "volume_type", "bootable"]
                    .map(|key| text(&volume[key]));
            [id, status, name, size, volume_type, bootable, servers.join(",")]
        };
        self.volumes().await.iter().map(row).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The end of the first process is the end of all, and `unshare` waits for it.
        let unshare = self.namespaces.id();
        let first = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        match first.as_deref().map(str::trim) {
            Ok(pid) if !pid.is_empty() => {
                Command::new("kill").args(["-KILL", pid]).status().ok();
            }
            _ => {
                self.namespaces.kill().ok();
            }
        }
        self.namespaces.wait().ok();
    }
}

/// Says past the capture of the test harness that a test is skipped: this must be seen.
fn skipped(reason: String) -> Result<(), String> {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "no Docker Engine: {reason}");
    let shown = format!("\n*** SKIPPED: no Docker Engine can run here: {reason} ***\n");
    std::io::stderr().write_all(shown.as_bytes()).ok();
    Err(reason)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
