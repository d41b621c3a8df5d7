//! Faults on demand, and the log of what was asked.
//!
//! A test adds [`Rule`]s; each names calls and says what goes wrong with them. In another process
//! the same rules travel as JSON to `POST /sandbox/faults`:
//!
//! ```json
//! {"call": "os-reserve", "skip": 1, "count": 1, "action": {"answer": {"status": 503, "retry_after": 1}}}
//! {"call": "DELETE /volume/v3/*/attachments/*", "action": "drop_after"}
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// So many requests are remembered; a sandbox may run for weeks.
const LOG_LIMIT: usize = 50_000;

/// What goes wrong, and when. Built by [`Rule::on`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A call's name (`os-reserve`, `create-volume`, …; [`Entry::call`] shows them all), or a
    /// method and a path in which `*` stands for one part: `GET /volume/v3/*/volumes/*`.
    /// `*` alone is every call.
    pub call: String,
    /// Only calls about this volume.
    #[serde(default)]
    pub volume_id: Option<Uuid>,
    /// So many calls pass first.
    #[serde(default)]
    pub skip: u32,
    /// So many calls are hit then; `None` (JSON: null) = all.
    #[serde(default = "once")]
    pub count: Option<u32>,
    /// What happens to them.
    pub action: Action,
}

/// JSON that says nothing of `count` means one call.
#[expect(clippy::unnecessary_wraps, reason = "the type is the field's")]
fn once() -> Option<u32> {
    Some(1)
}

impl Rule {
    /// This happens to the next call of this name.
    pub fn on(call: impl Into<String>, action: Action) -> Self {
        Self { call: call.into(), volume_id: None, skip: 0, count: Some(1), action }
    }

    /// Only to calls about this volume.
    #[must_use]
    pub fn of_volume(mut self, id: Uuid) -> Self {
        self.volume_id = Some(id);
        self
    }

    /// From the `n`th call on (1 = the next).
    #[must_use]
    pub fn from_nth(mut self, n: u32) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// To so many calls.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }

    /// To every call from then on.
    #[must_use]
    pub fn forever(mut self) -> Self {
        self.count = None;
        self
    }

    fn is_about(&self, call: &str, method: &str, path: &str, volume_id: Option<Uuid>) -> bool {
        if self.volume_id.is_some() && self.volume_id != volume_id {
            return false;
        }
        match self.call.split_once(' ') {
            Some((wanted, pattern)) => wanted == method && path_matches(pattern, path),
            None => self.call == "*" || self.call == call,
        }
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(wanted), Some(part)) if wanted == "*" || wanted == part => {}
            _ => return false,
        }
    }
}

/// What happens to a call. "The effect" is what the call does in the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Waits so many milliseconds before the effect.
    Delay(u64),
    /// Waits so many milliseconds between effect and answer.
    DelayAnswer(u64),
    /// Answers this instead; no effect.
    Answer(Canned),
    /// Answers this although the effect happened, as when Cinder's own RPC times out.
    AnswerAfter(Canned),
    /// Closes the connection; no effect.
    DropBefore,
    /// The effect happens, the answer is lost with the connection.
    DropAfter,
    /// The effect happens, the connection ends in the middle of the answer's body.
    HalfBody,
    /// The effect happens, the body is HTML.
    NotJson,
    /// The effect happens, the body never ends: a byte each 50 ms.
    SlowBody,
    /// The effect happens, the body goes on for ever, as fast as it is taken.
    Flood,
    /// Answers this at once, as a proxy does that does not wait; the effect happens so many
    /// milliseconds later.
    AnswerBefore(Canned, u64),
    /// All tokens end now, before the call is looked at.
    RevokeTokens,
    /// `create-volume`: the volume goes to `error`, with a user message that ends in this reason.
    FailCreate(String),
    /// `delete-volume`: the volume goes to `error_deleting`.
    FailDelete,
    /// `os-extend`: the back end fails, and the volume goes to `error_extending`.
    FailExtend,
    /// `os-extend`: the scheduler finds no back end that can do it, and the volume goes back to what it
    /// was.
    RefuseExtend,
    /// `create-snapshot`: the snapshot goes to `error`.
    FailSnapshot,
    /// `create-volume`, `delete-volume`, `os-detach`: the volume stays `creating`, `deleting`,
    /// `detaching` for good.
    Stuck,
}

/// An answer made up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canned {
    /// HTTP status.
    pub status: u16,
    /// The body; `None` = the error in Cinder's form.
    #[serde(default)]
    pub body: Option<String>,
    /// `Retry-After`, in seconds.
    #[serde(default)]
    pub retry_after: Option<u32>,
}

impl Canned {
    /// An error in Cinder's form.
    pub fn status(status: u16) -> Self {
        Self { status, body: None, retry_after: None }
    }

    /// An error that asks to come back after so many seconds.
    pub fn retry_after(status: u16, seconds: u32) -> Self {
        Self { status, body: None, retry_after: Some(seconds) }
    }
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1, 2, … since the start.
    pub sequence: u64,
    /// What it asks for: `authenticate`, `list-volumes`, `os-reserve`, `attachment-create`, …
    pub call: String,
    /// `GET`
    pub method: String,
    /// With its query.
    pub path: String,
    /// `volume 3.44`
    pub microversion: Option<String>,
    /// What was answered; `None` while it runs, and when the connection was dropped.
    pub status: Option<u16>,
    /// The volume it is about, where the request says so.
    pub volume_id: Option<Uuid>,
}

/// Fault rules and request log of a sandbox; shared with its server.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<VecDeque<Entry>>,
    sequence: AtomicU64,
    connections: AtomicU64,
}

/// All that the rules want done to one call.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delay: Duration,
    pub(super) revoke_tokens: bool,
    pub(super) instead: Option<Instead>,
    pub(super) effects: Effects,
    pub(super) delay_answer: Duration,
    pub(super) answer: Answer,
}

/// What happens instead of the call.
#[derive(Debug, Clone)]
pub(super) enum Instead {
    Drop,
    Answer(Canned),
    /// The effect follows after this time.
    AnswerBefore(Canned, Duration),
}

/// What goes wrong inside the cloud.
#[derive(Debug, Default, Clone)]
pub(super) struct Effects {
    pub(super) fail_create: Option<String>,
    pub(super) fail_delete: bool,
    pub(super) fail_extend: bool,
    pub(super) refuse_extend: bool,
    pub(super) fail_snapshot: bool,
    pub(super) stuck: bool,
}

/// What becomes of the answer.
#[derive(Debug, Default, Clone)]
pub(super) enum Answer {
    #[default]
    Whole,
    Dropped,
    Half,
    Html,
    Endless,
    Flood,
    Other(Canned),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// Adds a rule. All rules that match a call apply to it.
    pub fn add(&self, rule: Rule) {
        lock(&self.rules).push(rule);
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// Rules that have calls left to hit.
    pub fn rules(&self) -> Vec<Rule> {
        lock(&self.rules).clone()
    }

    /// The log since the start or the last [`Self::clear_requests`], its last 50,000; calls to `/sandbox` are not
    /// in it.
    pub fn requests(&self) -> Vec<Entry> {
        lock(&self.requests).iter().cloned().collect()
    }

    /// Requests of this name in the log.
    pub fn count(&self, call: &str) -> usize {
        lock(&self.requests).iter().filter(|entry| entry.call == call).count()
    }

    /// Forgets the log; the sequence goes on.
    pub fn clear_requests(&self) {
        lock(&self.requests).clear();
    }

    /// TCP connections accepted since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn accepted_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs a request that begins; answers its number.
    pub(super) fn begin(&self, entry: Entry) -> u64 {
        let mut requests = lock(&self.requests);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        if requests.len() >= LOG_LIMIT {
            requests.pop_front();
        }
        requests.push_back(Entry { sequence, ..entry });
        sequence
    }

    /// Logs what was answered.
    pub(super) fn end(&self, sequence: u64, status: u16) {
        let mut requests = lock(&self.requests);
        if let Some(entry) = requests.iter_mut().rev().find(|entry| entry.sequence == sequence) {
            entry.status = Some(status);
        }
    }

    /// What the rules want done to a call, which uses them up.
    pub(super) fn plan(
        &self,
        call: &str,
        method: &str,
        path: &str,
        volume_id: Option<Uuid>,
    ) -> Plan {
        let mut plan = Plan::default();
        lock(&self.rules).retain_mut(|rule| {
            if !rule.is_about(call, method, path, volume_id) {
                return true;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                return true;
            }
            plan.add(&rule.action);
            match &mut rule.count {
                None => true,
                Some(left) => {
                    *left = left.saturating_sub(1);
                    *left > 0
                }
            }
        });
        plan
    }
}

impl Plan {
    fn add(&mut self, action: &Action) {
        match action.clone() {
            Action::Delay(ms) => self.delay += Duration::from_millis(ms),
            Action::DelayAnswer(ms) => self.delay_answer += Duration::from_millis(ms),
            Action::Answer(canned) => self.instead = Some(Instead::Answer(canned)),
            Action::AnswerAfter(canned) => self.answer = Answer::Other(canned),
            Action::DropBefore => self.instead = Some(Instead::Drop),
            Action::DropAfter => self.answer = Answer::Dropped,
            Action::HalfBody => self.answer = Answer::Half,
            Action::NotJson => self.answer = Answer::Html,
            Action::SlowBody => self.answer = Answer::Endless,
            Action::Flood => self.answer = Answer::Flood,
            Action::AnswerBefore(canned, ms) => {
                let late = Duration::from_millis(ms);
                self.instead = Some(Instead::AnswerBefore(canned, late));
            }
            Action::RevokeTokens => self.revoke_tokens = true,
            Action::FailCreate(reason) => self.effects.fail_create = Some(reason),
            Action::FailDelete => self.effects.fail_delete = true,
            Action::FailExtend => self.effects.fail_extend = true,
            Action::RefuseExtend => self.effects.refuse_extend = true,
            Action::FailSnapshot => self.effects.fail_snapshot = true,
            Action::Stuck => self.effects.stuck = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(faults: &Faults, call: &str, path: &str) -> bool {
        faults.plan(call, "GET", path, None).instead.is_some()
    }

    #[test]
    fn a_rule_hits_the_calls_from_its_nth_on_as_often_as_it_says() {
        let faults = Faults::default();
        faults.add(Rule::on("show-volume", Action::DropBefore).from_nth(2).times(2));
        let hit: Vec<bool> = (0..5).map(|_| hits(&faults, "show-volume", "/x")).collect();
        assert_eq!(hit, [false, true, true, false, false]);
        assert_eq!(faults.rules(), []);
    }

    #[test]
    fn a_star_stands_for_one_part_of_a_path() {
        let faults = Faults::default();
        faults.add(Rule::on("GET /volume/v3/*/volumes", Action::DropBefore).forever());
        assert!(hits(&faults, "list-volumes", "/volume/v3/abc/volumes"));
        assert!(!hits(&faults, "show-volume", "/volume/v3/abc/volumes/1"));
        assert!(!hits(&faults, "list-volumes", "/volume/v3/volumes"));
    }

    #[test]
    fn rules_travel_as_json() {
        let rule: Rule = serde_json::from_str(
            r#"{"call": "os-reserve", "count": null, "action": {"answer": {"status": 503}}}"#,
        )
        .unwrap();
        assert_eq!(rule, Rule::on("os-reserve", Action::Answer(Canned::status(503))).forever());
        let rule: Rule = serde_json::from_str(r#"{"call": "*", "action": "drop_after"}"#).unwrap();
        assert_eq!(rule, Rule::on("*", Action::DropAfter));
    }
}
