//! Reads a page of a list while it arrives, so that no page lies in memory as a whole: a thousand
//! volumes are about a megabyte, of which a List keeps the names.

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Map, Value};

/// What takes a body piece by piece.
pub(super) trait Sink: Send {
    /// The body begins, perhaps not for the first time: a read may be repeated. It will have so many
    /// bytes; 0 = nobody knows.
    fn begin(&mut self, length: usize);
    /// The next bytes of the body.
    fn take(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn begin(&mut self, length: usize) {
        self.clear();
        self.reserve_exact(length);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Bytes that are looked at together.
const PIECE: usize = 16 * 1024;

/// A JSON object with a list of rows in it: `{"volumes": [ROW, …], "volumes_links": …}`.
pub(super) struct Page<T> {
    /// The key of the list.
    key: &'static str,
    rows: Vec<T>,
    /// Everything else in the object.
    rest: Map<String, Value>,
    /// What came and is not read yet.
    buffer: Vec<u8>,
    /// A value that is not complete is tried again when so many bytes are there: not at each piece,
    /// or a large one would be read from its beginning without end.
    wanted: usize,
    /// Bytes of the body before the buffer.
    consumed: usize,
    next: Next,
}

/// What must come next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Object,
    FirstKey,
    Key,
    Colon(String),
    Value(String),
    CommaOrEnd,
    FirstRow,
    Row,
    CommaOrEndOfRows,
    Nothing,
    /// It is not what was expected.
    Wrong,
}

/// Of reading on: more bytes are needed, or none will help.
enum Stop {
    Short,
    Wrong,
}

impl<T: DeserializeOwned + Send> Sink for Page<T> {
    fn begin(&mut self, _length: usize) {
        *self = Self::of(self.key);
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            // What comes behind something wrong is not kept.
            if self.next == Next::Wrong {
                return;
            }
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() >= self.wanted {
                self.read_on(false);
            }
        }
    }
}

impl<T: DeserializeOwned> Page<T> {
    /// A page whose rows are under this key.
    pub(super) fn of(key: &'static str) -> Self {
        Self {
            key,
            rows: Vec::new(),
            rest: Map::new(),
            buffer: Vec::new(),
            wanted: 0,
            consumed: 0,
            next: Next::Object,
        }
    }

    /// The rows, and what else was in the object; or, when the body was not such a page, at which
    /// byte it ceased to be one.
    pub(super) fn end(mut self) -> Result<(Vec<T>, Map<String, Value>), usize> {
        self.read_on(true);
        match self.next {
            Next::Nothing if self.rest.remove(self.key).is_some() => Ok((self.rows, self.rest)),
            _ => Err(self.consumed),
        }
    }

    /// Reads what is there; `all` = no more will come.
    fn read_on(&mut self, all: bool) {
        if self.next == Next::Wrong {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        let stop = loop {
            let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            at += buffer[at..].iter().take_while(|byte| blank(byte)).count();
            match self.step(&buffer[at..], all) {
                Ok(used) => at += used,
                Err(stop) => break stop,
            }
        };
        if matches!(stop, Stop::Wrong) {
            self.next = Next::Wrong;
        }
        self.consumed += at;
        buffer.drain(..at);
        self.buffer = buffer;
        self.wanted = 2 * self.buffer.len();
    }

    /// Takes the next token or value, and says how many bytes it has.
    fn step(&mut self, bytes: &[u8], all: bool) -> Result<usize, Stop> {
        let first = *bytes.first().ok_or(Stop::Short)?;
        let mut used = 1;
        self.next = match (std::mem::replace(&mut self.next, Next::Wrong), first) {
            (Next::Object, b'{') => Next::FirstKey,
            (Next::FirstKey, b'}') => Next::Nothing,
            (wanted @ (Next::FirstKey | Next::Key), b'"') => match value::<String>(bytes, all) {
                Ok((key, length)) => {
                    used = length;
                    Next::Colon(key)
                }
                Err(stop) => return self.stop(wanted, stop),
            },
            (Next::Colon(key), b':') => Next::Value(key),
            // A second list would hide the first.
            (Next::Value(key), b'[') if key == self.key && !self.rest.contains_key(&key) => {
                self.rest.insert(key, Value::Null);
                Next::FirstRow
            }
            (Next::Value(key), _) if key == self.key => return Err(Stop::Wrong),
            (Next::Value(key), _) => match value::<Value>(bytes, all) {
                Ok((value, length)) => {
                    self.rest.insert(key, value);
                    used = length;
                    Next::CommaOrEnd
                }
                Err(stop) => return self.stop(Next::Value(key), stop),
            },
            (Next::CommaOrEnd, b',') => Next::Key,
            (Next::CommaOrEnd, b'}') => Next::Nothing,
            (Next::FirstRow, b']') | (Next::CommaOrEndOfRows, b']') => Next::CommaOrEnd,
            (wanted @ (Next::FirstRow | Next::Row), _) => match value::<T>(bytes, all) {
                Ok((row, length)) => {
                    self.rows.push(row);
                    used = length;
                    Next::CommaOrEndOfRows
                }
                Err(stop) => return self.stop(wanted, stop),
            },
            (Next::CommaOrEndOfRows, b',') => Next::Row,
            _ => return Err(Stop::Wrong),
        };
        Ok(used)
    }

    fn stop(&mut self, wanted: Next, stop: Stop) -> Result<usize, Stop> {
        self.next = wanted;
        Err(stop)
    }
}

/// The value at the beginning of these bytes, and its length.
fn value<V: DeserializeOwned>(bytes: &[u8], all: bool) -> Result<(V, usize), Stop> {
    let mut values = Deserializer::from_slice(bytes).into_iter::<V>();
    let read = values.next();
    let length = values.byte_offset();
    // A number, for one, may go on in the next bytes.
    let has_an_end = matches!(bytes.first(), Some(b'{' | b'[' | b'"')) || length < bytes.len();
    match read {
        Some(Ok(_)) if !has_an_end && !all => Err(Stop::Short),
        Some(Ok(value)) => Ok((value, length)),
        Some(Err(error)) if error.is_eof() && !all => Err(Stop::Short),
        _ => Err(Stop::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Result<(Vec<Value>, Map<String, Value>), usize>;

    fn read(body: &str, piece: usize) -> Read {
        let mut page = Page::of("volumes");
        // What came before a repetition is forgotten.
        page.take(b"{\"volumes\": [1, 2");
        page.begin(body.len());
        body.as_bytes().chunks(piece).for_each(|piece| page.take(piece));
        page.end()
    }

    #[test]
    fn a_page_is_the_same_however_it_is_cut() {
        let body = r#" {"a": {"volumes": [7]}, "n": -12.5e3,"volumes" : [ {"id": "]}\"\\ü", "x": [[]]},
            {}, 12, null, "é\u00e9" ] ,"volumes_links":[{"rel": "next"}], "t":true } "#;
        let whole: Value = serde_json::from_str(body).unwrap();
        for piece in 1..=body.len() {
            let (rows, rest) = read(body, piece).unwrap();
            assert_eq!(Value::from(rows), whole["volumes"], "in pieces of {piece} bytes");
            let mut others = whole.as_object().unwrap().clone();
            others.remove("volumes");
            assert_eq!(rest, others, "in pieces of {piece} bytes");
        }
        assert_eq!(read(r#"{"volumes":[]}"#, 3), Ok((vec![], Map::new())));
    }

    #[test]
    fn what_is_no_page_is_refused_however_it_is_cut() {
        for (body, at) in [
            ("", 0),
            ("[]", 0),
            ("{}", 2),
            (r#"{"volumes": [], }"#, 16),
            (r#"{"volumes": [1,]}"#, 15),
            (r#"{"volumes": [,1]}"#, 13),
            (r#"{"volumes": [1 2]}"#, 15),
            (r#"{"volumes": [1]"#, 15),
            (r#"{"volumes": [{"a": }]}"#, 13),
            (r#"{"volumes": [{"a": "#, 13),
            (r#"{"volumes": null}"#, 12),
            (r#"{"volumes": {}}"#, 12),
            (r#"{"volumes": [], "volumes": []}"#, 27),
            (r#"{"volumes": []} {}"#, 16),
            (r#"{"volumes" []}"#, 11),
            (r#"{"other": [1]}"#, 14),
            (r#"{"other": 01, "volumes": []}"#, 10),
            ("<html>", 0),
        ] {
            for piece in 1..=body.len().max(1) {
                assert_eq!(read(body, piece), Err(at), "{body} in pieces of {piece} bytes");
            }
        }
    }

    #[test]
    fn rows_of_another_shape_are_refused() {
        let mut page = Page::<Vec<u8>>::of("volumes");
        page.take(br#"{"volumes": [[1], {}]}"#);
        assert_eq!(page.end(), Err(18));
    }

    /// A large value is not read from its beginning at each piece.
    #[test]
    fn little_is_kept_and_nothing_is_read_without_end() {
        let row = format!("[{}1]", "1,".repeat(100));
        let mut page = Page::<Value>::of("volumes");
        page.take(b"{\"volumes\": [");
        for _ in 0..1000 {
            page.take(row.as_bytes());
            page.take(b",");
            assert!(page.buffer.len() <= 2 * row.len(), "{}", page.buffer.len());
        }
        let mut page = Page::<Value>::of("volumes");
        page.take(b"{\"volumes\": [\"");
        let mut tries = 0;
        for _ in 0..1000 {
            let wanted = page.wanted;
            page.take(&[b'x'; PIECE]);
            tries += usize::from(page.wanted != wanted);
        }
        assert!((5..20).contains(&tries), "{tries} tries of 16 MB");
    }
}
