//! Timestamps and durations.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::overflow;
use crate::schema::cel::value::{Fault, Outcome, Value};

const SECOND: i64 = 1_000_000_000;

/// Reads a time in RFC 3339, with its zone.
pub(in crate::schema::cel) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // jiff also reads other ISO 8601 forms.
    let shape = text.len() >= 20 && text.as_bytes().get(10).is_some_and(|b| *b == b'T');
    shape.then(|| text.parse().ok()).flatten()
}

/// Reads Go's durations, like `1h30m` or `-1.5s`, into nanoseconds.
pub(in crate::schema::cel) fn parse_duration(text: &str) -> Option<i64> {
    read_duration(text, |unit| {
        Some(match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        })
    })
}

/// Reads what `format: duration` allows: Go's form, or units in words like `3 hours`.
pub(in crate::schema::cel) fn parse_worded_duration(text: &str) -> Option<i64> {
    parse_duration(text).or_else(|| {
        let joined: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        read_duration(&joined, |unit| {
            Some(match unit {
                "ns" | "nano" | "nanos" => 1,
                "us" | "µs" | "μs" | "micro" | "micros" => 1_000,
                "ms" | "milli" | "millis" => 1_000_000,
                "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
                "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
                "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000_000_000,
                "d" | "day" | "days" => 86_400_000_000_000,
                "w" | "wk" | "week" | "weeks" => 604_800_000_000_000,
                _ => return None,
            })
        })
    })
}

fn read_duration(text: &str, unit_of: impl Fn(&str) -> Option<i128>) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = unit_of(unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || whole.len() > 19 || fraction.contains('.') {
            return None;
        }
        let fraction = &fraction[..fraction.len().min(18)];
        if !whole.is_empty() {
            total += whole.parse::<i128>().ok()? * unit;
        }
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * unit / 10_i128.pow(fraction.len() as u32);
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Seconds with a fraction, as CEL prints durations.
pub(super) fn duration_text(nanos: i64) -> String {
    let (sign, size) = if nanos < 0 {
        ("-", nanos.unsigned_abs())
    } else {
        ("", nanos.unsigned_abs())
    };
    let (seconds, fraction) = (size / SECOND.unsigned_abs(), size % SECOND.unsigned_abs());
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    let digits = format!("{fraction:09}");
    format!("{sign}{seconds}.{}s", digits.trim_end_matches('0'))
}

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    use Value::{Duration, Int, String};
    let span = |nanos: Option<i64>| nanos.map(Duration).ok_or_else(overflow);
    Some(match (name, args) {
        ("timestamp", [Value::Timestamp(_)]) | ("duration", [Duration(_)]) => Ok(args[0].clone()),
        ("timestamp", [String(text)]) => parse_timestamp(text)
            .map(Value::Timestamp)
            .ok_or_else(|| Fault::other("type conversion error from 'string' to 'google.protobuf.Timestamp'")),
        ("timestamp", [Int(seconds)]) => Timestamp::from_second(*seconds)
            .map(Value::Timestamp)
            .map_err(|_| Fault::other("timestamp overflow")),
        ("duration", [String(text)]) => parse_duration(text)
            .map(Duration)
            .ok_or_else(|| Fault::other("type conversion error from 'string' to 'google.protobuf.Duration'")),
        ("duration", [Int(nanos)]) => Ok(Duration(*nanos)),
        ("_+_", [Duration(a), Duration(b)]) => span(a.checked_add(*b)),
        ("_-_", [Duration(a), Duration(b)]) => span(a.checked_sub(*b)),
        ("_+_", [Value::Timestamp(moment), Duration(nanos)] | [Duration(nanos), Value::Timestamp(moment)]) => {
            moved(*moment, SignedDuration::from_nanos(*nanos))
        }
        ("_-_", [Value::Timestamp(moment), Duration(nanos)]) => moved(*moment, -SignedDuration::from_nanos(*nanos)),
        ("_-_", [Value::Timestamp(a), Value::Timestamp(b)]) => {
            span(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).ok())
        }
        ("getHours", [Duration(nanos)]) => Ok(Int(nanos / SECOND / 3600)),
        ("getMinutes", [Duration(nanos)]) => Ok(Int(nanos / SECOND / 60)),
        ("getSeconds", [Duration(nanos)]) => Ok(Int(nanos / SECOND)),
        ("getMilliseconds", [Duration(nanos)]) => Ok(Int(nanos / 1_000_000)),
        (_, [Value::Timestamp(moment)]) => part(name, *moment, TimeZone::UTC)?,
        (_, [Value::Timestamp(moment), String(zone)]) => match time_zone(zone) {
            Some(zone) => part(name, *moment, zone)?,
            None => Err(Fault::Other(format!("unknown time zone {zone}"))),
        },
        _ => return None,
    })
}

fn moved<'a>(moment: Timestamp, by: SignedDuration) -> Outcome<'a> {
    moment
        .checked_add(by)
        .map(Value::Timestamp)
        .map_err(|_| Fault::other("timestamp overflow"))
}

/// `Europe/Berlin` or `+01:00`.
fn time_zone(name: &str) -> Option<TimeZone> {
    let Some((hours, minutes)) = name.split_once(':') else {
        return TimeZone::get(name).ok();
    };
    let (sign, hours) = match hours.strip_prefix('-') {
        Some(hours) => (-1, hours),
        None => (1, hours.strip_prefix('+').unwrap_or(hours)),
    };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    if !(0..=23).contains(&hours) || !(0..=59).contains(&minutes) {
        return None;
    }
    let offset = jiff::tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?;
    Some(TimeZone::fixed(offset))
}

fn part<'a>(name: &str, moment: Timestamp, zone: TimeZone) -> Option<Outcome<'a>> {
    let time = moment.to_zoned(zone);
    Some(Ok(Value::Int(match name {
        "getFullYear" => time.year().into(),
        "getMonth" => i64::from(time.month()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDate" => time.day().into(),
        "getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        "getHours" => time.hour().into(),
        "getMinutes" => time.minute().into(),
        "getSeconds" => time.second().into(),
        "getMilliseconds" => time.millisecond().into(),
        _ => return None,
    })))
}
