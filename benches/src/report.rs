//! What was measured, printed as Markdown.

use std::time::Duration;

use anyhow::Result;

/// A report on standard output.
pub struct Report(());

impl Report {
    /// Prints what the numbers were measured on.
    pub fn begin(title: &str) -> Result<Report> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?
                    .split_once(": ")
                    .map(|(_, name)| name.to_owned())
            })
            .unwrap_or_else(|| "unknown CPU".to_owned());
        let memory: u64 = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or(0);
        let cpus = std::thread::available_parallelism()?;
        println!("# {title}\n");
        println!(
            "{cpus} x {cpu}, {} GiB, Linux {}; {}; load at the start {}",
            memory >> 20,
            read("/proc/sys/kernel/osrelease").trim(),
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
            load()
        );
        Ok(Report(()))
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        println!("\n## {title} (load {})\n", load());
    }

    /// A table.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        println!("| {} |", head.join(" | "));
        println!("|{}", "---|".repeat(head.len()));
        for row in rows {
            println!("| {} |", row.join(" | "));
        }
    }

    /// A line of text.
    pub fn line(&mut self, text: &str) {
        println!("\n{text}");
    }

    /// The last line.
    pub fn end(self) {
        println!("\nLoad at the end: {}", load());
    }
}

/// The load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// Durations, to be described by their quantiles.
#[derive(Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that this share of all samples does not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// A table row: the name, P50, P95 and the largest, in milliseconds.
    pub fn row(&self, name: &str) -> Vec<String> {
        let cells = [0.5, 0.95, 1.0].map(|share| ms(self.quantile(share)));
        std::iter::once(name.to_owned()).chain(cells).collect()
    }
}

/// Milliseconds with two digits.
pub fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_that_were_seen() {
        let mut samples = Samples::default();
        assert_eq!(samples.quantile(0.5), Duration::ZERO);
        for ms in [4, 1, 3, 2] {
            samples.add(Duration::from_millis(ms));
        }
        assert_eq!(samples.quantile(0.5), Duration::from_millis(2));
        assert_eq!(samples.quantile(0.95), Duration::from_millis(4));
        assert_eq!(samples.quantile(1.0), Duration::from_millis(4));
    }
}
