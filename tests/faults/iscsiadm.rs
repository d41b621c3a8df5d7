//! Every answer that iscsiadm may give to a login and a logout, true or not: each volume gets
//! another one, several at the same time.
//!
//! What is true the kernel says. 0 and 15 to a login and 21 to a logout are answers, not errors;
//! 24 (refused credentials) is never followed by another login.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use futures_util::stream::{self, StreamExt};
use serde_json::json;

use crate::bench::{Bench, Storage};
use crate::iscsi::{FAULTS_VARIABLE, initiator};
use crate::table::flow;

/// What iscsiadm does and answers. `$real "$@"` does what was asked.
struct Answer {
    name: &'static str,
    shell: &'static str,
    /// Part of the error of a Mount; `None` = it succeeds.
    login: Option<&'static str>,
    /// So many logins are tried.
    logins: usize,
}

const fn fails(name: &'static str, shell: &'static str, error: &'static str) -> Answer {
    Answer { name, shell, login: Some(error), logins: 1 }
}

const fn fails_twice(name: &'static str, shell: &'static str, error: &'static str) -> Answer {
    Answer { logins: 2, ..fails(name, shell, error) }
}

const fn done(name: &'static str, shell: &'static str) -> Answer {
    Answer { name, shell, login: None, logins: 1 }
}

const NOT_THERE: &str = "the kernel shows none";

const ANSWERS: [Answer; 20] = [
    fails("exit 1", "exit 1", "(exit 1)"),
    fails("exit 2", "exit 2", "(exit 2)"),
    fails_twice("exit 6", "exit 6", "data base is locked"),
    fails("exit 8", "exit 8", "does not answer"),
    fails("exit 12", "exit 12", "modprobe iscsi_tcp"),
    fails("exit 15", "exit 15", NOT_THERE),
    fails_twice("exit 19", "exit 19", "is not exported"),
    fails_twice("exit 20", "exit 20", "iscsid does not run"),
    fails("exit 21", "exit 21", "does not find the node record"),
    fails("exit 24", "exit 24", "refused the CHAP user or password"),
    fails("exit 255", "exit 255", "(exit 255)"),
    fails("killed", "kill -9 $$", "iscsiadm was killed"),
    fails("hangs", "exec sleep 1000", "took longer than 30 s"),
    fails("garbage, exit 0", GARBAGE, NOT_THERE),
    fails("nothing, exit 0", "exit 0", NOT_THERE),
    done("done, exit 8", "$real \"$@\"; exit 8"),
    done("done, exit 15", "$real \"$@\"; exit 15"),
    done("done, exit 24", "$real \"$@\"; exit 24"),
    done("done, killed", "$real \"$@\"; kill -9 $$"),
    // As open-iscsi 2.1.10 does.
    done("done, hangs", "$real \"$@\"; exec sleep 1000"),
];

/// What a logout, which is tried five times, gets by default.
const SOME: [&str; 8] = [
    "exit 8",
    "exit 20",
    "exit 21",
    "killed",
    "hangs",
    "nothing, exit 0",
    "done, exit 8",
    "done, hangs",
];

const GARBAGE: &str = "head -c 300000 /dev/urandom; head -c 300000 /dev/urandom >&2; exit 0";

/// So many volumes at a time: one that hangs holds up no other, and the waits are shared.
const AT_A_TIME: usize = 4;
/// Whose background work is waited for.
const SOON: Duration = Duration::from_secs(200);

/// A bench whose iscsiadm answers what is in a file for each target.
struct Lab {
    bench: Bench,
    plans: PathBuf,
}

impl Lab {
    async fn new() -> Self {
        let mut bench = Bench::on(Storage::Iscsi, flow(false)).await;
        let plans = bench.gate.file("iscsiadm");
        fs::create_dir(&plans).unwrap();
        let tool = bench.gate.file("tools/iscsiadm");
        let script = format!(
            "#!/bin/sh\n\
             PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
             real=$(command -v iscsiadm)\n\
             case \"$*\" in\n\
             *' --login') call=login target=$4 ;;\n\
             *' --logout') call=logout target=$(cat /sys/class/iscsi_session/session$4/targetname) ;;\n\
             *) exec $real \"$@\" ;;\n\
             esac\n\
             plan={0}/$call-${{target##*:volume-}}\n\
             echo $call >>$plan.calls\n\
             [ ! -e $plan ] || . $plan\n\
             exec $real \"$@\"\n",
            plans.display()
        );
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        // Tools are looked up once.
        bench.restart().await;
        Self { bench, plans }
    }

    fn plan(&self, call: &str, id: &str) -> PathBuf {
        self.plans.join(format!("{call}-{id}"))
    }

    fn arm(&self, call: &str, id: &str, shell: &str) {
        fs::write(self.plan(call, id), shell).unwrap();
        fs::remove_file(self.plan(call, id).with_extension("calls")).ok();
    }

    /// So often it was called.
    fn disarm(&self, call: &str, id: &str) -> usize {
        fs::remove_file(self.plan(call, id)).unwrap();
        let calls = self.plan(call, id).with_extension("calls");
        fs::read_to_string(calls).unwrap_or_default().lines().count()
    }

    async fn create(&self, name: &str) -> String {
        self.bench.node.create(name, json!({})).await.unwrap();
        self.bench.cloud.volume(name).await["id"].as_str().unwrap().to_owned()
    }

    async fn until_free(&self, name: &str) {
        let end = Instant::now() + SOON;
        while self.bench.cloud.status(name).await != "available" {
            assert!(Instant::now() < end, "{name} stays attached: {}", self.bench.node.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn end(self, table: &[String]) {
        println!("\n{}\n{} cases, none failed", table.join("\n"), table.len());
        for volume in self.bench.cloud.volumes().await {
            let name = volume["name"].as_str().unwrap();
            if !name.starts_with("theirs") {
                self.bench.node.remove(name).await.unwrap();
            }
        }
        self.bench.assert_nothing_left().await;
    }
}

/// Sessions to a volume's target.
fn sessions(id: &str) -> usize {
    let Ok(found) = fs::read_dir("/sys/class/iscsi_session") else { return 0 };
    let target = |one: fs::DirEntry| fs::read_to_string(one.path().join("targetname"));
    found.flatten().filter_map(|one| target(one).ok()).filter(|name| name.contains(id)).count()
}

fn row(what: &str, answer: &Answer, calls: usize, said: &Result<impl Sized, String>) -> String {
    let mut row = format!("{what:<8} {:<16} {calls} calls  ", answer.name);
    let _ = match said {
        Ok(_) => write!(row, "succeeded"),
        Err(error) => write!(row, "{error}"),
    };
    row
}

/// No other login than the faulty one stands between a Mount and its volume: a lie is found out, and
/// what failed leaves nothing behind.
#[tokio::test]
async fn every_answer_to_a_login() {
    if !initiator::is_here("every_answer_to_a_login") {
        return;
    }
    let lab = Lab::new().await;
    let case = async |number: usize, answer: &Answer| {
        let (name, node) = (format!("login-{number}"), &lab.bench.node);
        let id = lab.create(&name).await;
        lab.arm("login", &id, answer.shell);
        let said = node.mount(&name, "c").await;
        let calls = lab.disarm("login", &id);
        let row = row("login", answer, calls, &said);
        assert_eq!(calls, answer.logins, "{row}");
        match (&said, answer.login) {
            (Ok(path), None) => {
                fs::write(path.join("bytes"), "written").unwrap();
                assert_eq!(sessions(&id), 1, "{row}");
                node.unmount(&name, "c").await.unwrap();
            }
            (Err(error), Some(words)) => {
                assert!(error.contains(words) && error.contains(&name), "{row}");
            }
            _ => panic!("{row}"),
        }
        assert_eq!(sessions(&id), 0, "{row}");
        // At once: nothing is left to the background.
        assert_eq!(lab.bench.cloud.status(&name).await, "available", "{row}");
        row
    };
    let cases = ANSWERS.iter().enumerate().map(|(number, answer)| case(number, answer));
    let table: Vec<String> = stream::iter(cases).buffered(AT_A_TIME).collect().await;
    lab.end(&table).await;
}

/// A login that fails once, with an answer that asks for another try, is no failure.
#[tokio::test]
async fn an_answer_that_asks_for_another_login() {
    if !initiator::is_here("an_answer_that_asks_for_another_login") {
        return;
    }
    let lab = Lab::new().await;
    let mut table = Vec::new();
    for answer in ANSWERS.iter().filter(|answer| answer.logins == 2) {
        let name = answer.name.replace(' ', "-");
        let id = lab.create(&name).await;
        lab.arm("login", &id, &format!("[ $(wc -l <$plan.calls) -gt 1 ] || {}", answer.shell));
        let said = lab.bench.node.mount(&name, "c").await;
        let calls = lab.disarm("login", &id);
        table.push(row("login", answer, calls, &said));
        said.unwrap();
        assert_eq!(calls, 2, "{table:?}");
        lab.bench.node.unmount(&name, "c").await.unwrap();
    }
    lab.end(&table).await;
}

/// What an Unmount says, and when the session is gone; Cinder hears of it only then.
#[tokio::test]
async fn answers_to_a_logout() {
    if !initiator::is_here("answers_to_a_logout") {
        return;
    }
    let lab = Lab::new().await;
    let case = async |number: usize, answer: &Answer| {
        let (name, node) = (format!("logout-{number}"), &lab.bench.node);
        let id = lab.create(&name).await;
        let path = node.mount(&name, "c").await.unwrap();
        fs::write(path.join("bytes"), "written").unwrap();
        lab.arm("logout", &id, answer.shell);
        let said = node.unmount(&name, "c").await;
        let is_there = sessions(&id);
        let status = lab.bench.cloud.status(&name).await;
        let calls = lab.disarm("logout", &id);
        let row = row("logout", answer, calls, &said);
        if answer.login.is_none() {
            // It was done.
            assert!(said.is_ok(), "{row}");
            assert_eq!((is_there, calls, status.as_str()), (0, 1, "available"), "{row}");
        } else {
            let error = said.unwrap_err();
            let words = match answer.name {
                "killed" => "iscsiadm was killed",
                // All the time that Docker gives goes by.
                "hangs" => "goes on",
                "garbage, exit 0" | "nothing, exit 0" => "but the kernel has it (exit 0)",
                exit => exit,
            };
            assert!(error.contains(words) && error.contains(&name), "{row}");
            assert_eq!((is_there, status.as_str()), (1, "in-use"), "{row}");
            // By now the background may have tried, too.
            assert!(calls >= 5 || answer.name == "hangs", "{row}");
        }
        lab.until_free(&name).await;
        assert_eq!(sessions(&id), 0, "{row}");
        row
    };
    let all = std::env::var_os(FAULTS_VARIABLE).is_some();
    let chosen = ANSWERS.iter().filter(|answer| all || SOME.contains(&answer.name));
    let cases = chosen.enumerate().map(|(number, answer)| case(number, answer));
    let table: Vec<String> = stream::iter(cases).buffered(AT_A_TIME).collect().await;
    lab.end(&table).await;
}

/// A Mount that fails after its login logs out again, whatever iscsiadm says to that; its own error
/// is what Docker hears.
#[tokio::test]
#[ignore = "takes long"]
async fn every_answer_to_the_logout_of_a_mount_that_failed() {
    if !initiator::is_here("every_answer_to_the_logout_of_a_mount_that_failed") {
        return;
    }
    let lab = Lab::new().await;
    let refused = Canned { body: Some("a fault".to_owned()), ..Canned::status(400) };
    let refusal = Rule::on("attachment-complete", Action::Answer(refused)).forever();
    let case = async |number: usize, answer: &Answer| {
        let (name, node) = (format!("undone-{number}"), &lab.bench.node);
        let id = lab.create(&name).await;
        lab.arm("logout", &id, answer.shell);
        let said: Result<PathBuf, String> = node.mount(&name, "c").await;
        let is_there = sessions(&id);
        let status = lab.bench.cloud.status(&name).await;
        let calls = lab.disarm("logout", &id);
        let row = row("undoing", answer, calls, &said);
        let error = said.unwrap_err();
        // Five that hang take longer than Docker waits.
        let words = if answer.name == "hangs" { "goes on" } else { "400" };
        assert!(error.contains(words) && error.contains(&name), "{row}");
        if answer.login.is_none() {
            assert_eq!((is_there, calls, status.as_str()), (0, 1, "available"), "{row}");
        } else {
            assert!(is_there == 1 && status != "available", "{row}: {is_there} {status}");
        }
        lab.until_free(&name).await;
        assert_eq!(sessions(&id), 0, "{row}");
        row
    };
    lab.bench.cloud.fail(refusal);
    let cases = ANSWERS.iter().enumerate().map(|(number, answer)| case(number, answer));
    let table: Vec<String> = stream::iter(cases).buffered(AT_A_TIME).collect().await;
    lab.bench.cloud.clear_faults();
    lab.end(&table).await;
}
