//! What our own commands ask over the plugin's socket, beside Docker's protocol: `/Operator.*` with a
//! JSON object as body. No I/O.

use serde_json::{Map, Value};

use super::protocol::{member, member_text, members_of};

/// A question, with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The volumes: ours and those known here, or all of the project.
    List {
        /// All of the project.
        all: bool,
    },
    /// All that is known of one volume.
    Inspect {
        /// Its name or id.
        name: String,
    },
    /// Whether the daemon is well.
    Health {
        /// Ask Cinder, and look at the devices.
        deep: bool,
    },
    /// Take a volume that was made elsewhere into the driver's care.
    Adopt {
        /// Its name or id.
        name: String,
        /// The name that it gets; empty = the one that it has.
        new_name: String,
        /// Its id, when the operator has confirmed.
        confirmed: Option<String>,
    },
    /// Take one volume from a host that is gone, as it was shown to the operator.
    ReleaseFrom {
        /// The volume's id.
        volume: String,
        /// The host, as attachments name it.
        host: String,
        /// The attachments that were shown; with others nothing is done.
        attachments: Vec<String>,
    },
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// [`Question::List`]
    List,
    /// [`Question::Inspect`]
    Inspect,
    /// [`Question::Health`]
    Health,
    /// [`Question::Adopt`]
    Adopt,
    /// [`Question::ReleaseFrom`]
    ReleaseFrom,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::List, Self::Inspect, Self::Health, Self::Adopt, Self::ReleaseFrom];

    /// Its path on the plugin's socket.
    pub fn path(self) -> &'static str {
        match self {
            Self::List => "/Operator.List",
            Self::Inspect => "/Operator.Inspect",
            Self::Health => "/Operator.Health",
            Self::Adopt => "/Operator.Adopt",
            Self::ReleaseFrom => "/Operator.ReleaseFrom",
        }
    }

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        self.path().trim_start_matches('/')
    }

    /// Whether it changes nothing.
    pub fn is_read(self) -> bool {
        matches!(self, Self::List | Self::Inspect | Self::Health)
    }
}

impl Question {
    /// Parses the body of a question.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(subject: Subject, body: &[u8]) -> Result<Self, String> {
        let members = members_of(body)?;
        Ok(match subject {
            Subject::List => Self::List { all: flag(&members, "All")? },
            Subject::Inspect => Self::Inspect { name: needed(&members, "Name")? },
            Subject::Health => Self::Health { deep: flag(&members, "Deep")? },
            Subject::Adopt => Self::Adopt {
                name: needed(&members, "Name")?,
                new_name: member_text(&members, "NewName")?,
                confirmed: Some(member_text(&members, "ID")?).filter(|id| !id.is_empty()),
            },
            Subject::ReleaseFrom => Self::ReleaseFrom {
                volume: needed(&members, "ID")?,
                host: needed(&members, "Host")?,
                attachments: texts(&members, "Attachments")?,
            },
        })
    }

    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::List { .. } => Subject::List,
            Self::Inspect { .. } => Subject::Inspect,
            Self::Health { .. } => Subject::Health,
            Self::Adopt { .. } => Subject::Adopt,
            Self::ReleaseFrom { .. } => Subject::ReleaseFrom,
        }
    }

    /// The volume that it names, for the log; empty when it names none.
    pub fn volume(&self) -> &str {
        match self {
            Self::List { .. } | Self::Health { .. } => "",
            Self::Inspect { name } | Self::Adopt { name, .. } => name,
            Self::ReleaseFrom { volume, .. } => volume,
        }
    }
}

fn needed(members: &Map<String, Value>, name: &str) -> Result<String, String> {
    let text = member_text(members, name)?;
    if text.is_empty() { Err(format!("the request lacks {name}")) } else { Ok(text) }
}

fn flag(members: &Map<String, Value>, name: &str) -> Result<bool, String> {
    match member(members, name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("{name} in the request is neither true nor false")),
    }
}

fn texts(members: &Map<String, Value>, name: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{name} in the request is not a list of strings");
    let Some(list) = member(members, name) else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or_else(wrong)?;
    list.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_parsed_by_its_own_members() {
        let parse = |subject, body: &str| Question::parse(subject, body.as_bytes());
        assert_eq!(parse(Subject::List, "{}"), Ok(Question::List { all: false }));
        assert_eq!(parse(Subject::List, r#"{"all":true}"#), Ok(Question::List { all: true }));
        let adopt = parse(Subject::Adopt, r#"{"Name":"a","NewName":"b","ID":""}"#);
        let expected = Question::Adopt { name: "a".into(), new_name: "b".into(), confirmed: None };
        assert_eq!(adopt, Ok(expected));
        let from = parse(Subject::ReleaseFrom, r#"{"ID":"v","Host":"h","Attachments":["x"]}"#);
        let expected = Question::ReleaseFrom {
            volume: "v".into(),
            host: "h".into(),
            attachments: vec!["x".into()],
        };
        assert_eq!(from, Ok(expected));
    }

    #[test]
    fn what_is_missing_or_of_another_type_is_named() {
        for (subject, body, names) in [
            (Subject::Inspect, "{}", "Name"),
            (Subject::Health, r#"{"Deep":"yes"}"#, "Deep"),
            (Subject::ReleaseFrom, r#"{"ID":"v"}"#, "Host"),
            (Subject::ReleaseFrom, r#"{"ID":"v","Host":"h","Attachments":[1]}"#, "Attachments"),
            (Subject::Adopt, r#"{"Name":"a","Name":"b"}"#, "twice"),
            (Subject::List, "", "empty"),
            (Subject::List, "[]", "not a JSON object"),
        ] {
            let error = Question::parse(subject, body.as_bytes()).unwrap_err();
            assert!(error.contains(names), "{body}: {error}");
        }
    }
}
