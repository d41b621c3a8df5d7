//! Time as OpenStack writes it: UTC, in Cinder without a zone, in Keystone whole seconds and a `Z`.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment: microseconds since 1970, UTC.
pub(super) type Micros = i64;

/// The present moment.
pub(super) fn now() -> Micros {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(elapsed.as_micros()).unwrap_or(Micros::MAX)
}

/// `2026-11-22T02:24:00.419476`
pub(super) fn cinder(moment: Micros) -> String {
    format!("{}.{:06}", seconds(moment), moment.rem_euclid(1_000_000))
}

/// `2026-11-22T02:24:00.000000Z`
pub(super) fn keystone(moment: Micros) -> String {
    format!("{}.000000Z", seconds(moment))
}

/// `2026-11-22T02:24:00`
fn seconds(moment: Micros) -> String {
    let second = moment.div_euclid(1_000_000);
    let (days, second) = (second.div_euclid(86_400), second.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of a day counted from 1970-01-01. A year is counted from March here, so
/// that the leap day is its last; 400 years have 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_779), (2026, 11, 22));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn cinder_has_microseconds_and_keystone_a_zone() {
        let moment = 1_795_314_240_419_476;
        assert_eq!(cinder(moment), "2026-11-22T02:24:00.419476");
        assert_eq!(keystone(moment), "2026-11-22T02:24:00.000000Z");
    }
}
