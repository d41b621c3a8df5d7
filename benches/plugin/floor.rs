//! The program that replays recordings, as a process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::rig::{Cloud, Proxy, certificate};

/// What one run of an operation needs to know and tells the next: `{NAME}` and so on.
pub type Known = BTreeMap<String, String>;

pub struct Floor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Floor {
    pub fn start(
        cloud: &Cloud,
        proxy: Option<&Proxy>,
        recording: &Value,
        token: &str,
        state: &Path,
    ) -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/floor.py");
        let mut child = Command::new("python3")
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for the floor");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut floor = Self { child, input, output: BufReader::new(output) };
        let address = proxy.map_or(cloud.address, |proxy| proxy.address);
        let ca = proxy.filter(|proxy| proxy.tls).map(|_| certificate("ca.pem"));
        floor.ask(&json!({
            "do": "set_up", "recording": recording, "token": token, "state": state,
            "cloud": { "host": address.ip().to_string(), "port": address.port(), "ca": ca },
        }));
        floor
    }

    /// Milliseconds of one operation.
    pub fn run(&mut self, operation: &str, known: &mut Known, journal: bool) -> f64 {
        let answer =
            self.ask(&json!({ "do": "run", "op": operation, "names": known, "journal": journal }));
        *known = serde_json::from_value(answer["names"].clone()).unwrap();
        answer["ms"].as_f64().unwrap()
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).expect("an answer of floor.py");
        assert!(answer.get("error").is_none(), "floor.py: {answer}\n{}", request["op"]);
        answer
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
