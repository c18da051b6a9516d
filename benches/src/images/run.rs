//! The rounds: every pipeline on every image, one after the other, from empty stores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use vmlet_e2e::registry::Registry;

use super::measure::{self, Cost};
use super::pipelines::{self, FLOOR, Pipeline, Place, VMLET};
use super::{plot, set};
use crate::report::Report;

/// Settings of the measurements.
#[derive(Args)]
pub struct Images {
    /// The vmlet binary, a release build.
    #[arg(long)]
    vmlet: PathBuf,
    /// Directory of the images, as `vmlet-bench image-set` makes it.
    #[arg(long)]
    set: PathBuf,
    /// Directory for everything that is written while measuring, on a real disk.
    #[arg(long)]
    work: PathBuf,
    /// How often everything is run.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Begin no round that would probably end later than so many seconds after the start of the first.
    #[arg(long)]
    max_seconds: Option<u64>,
    /// Images to measure.
    #[arg(long, value_delimiter = ',', default_values_t = set::IMAGES.map(String::from))]
    images: Vec<String>,
    /// Leave everything out but the floor and vmlet.
    #[arg(long)]
    no_peers: bool,
    /// Write the plot (SVG) to this file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// One run: the pipeline as it is shipped, and what a `sync` of its output costs after it.
#[derive(Clone, Copy)]
struct Sample {
    shipped: Cost,
    synced: Cost,
}

/// All rounds of one pipeline on one image.
pub struct Row {
    /// The pipeline.
    pub name: &'static str,
    /// Seconds with the output synced, one for each round.
    pub walls: Vec<f64>,
    samples: Vec<Sample>,
    /// Runs whose disk e2fsck found clean.
    clean: usize,
    makes_disk: bool,
    /// Why it cannot build this image; it is not tried again then.
    gave_up: Option<String>,
}

impl Sample {
    fn words(&self, clean: bool) -> String {
        let Sample { shipped, synced } = self;
        format!(
            "{:.2}, {:.2} s; {:.2} CPU s, {} MiB, {:.0} MB written{}",
            shipped.wall.as_secs_f64(),
            synced.wall.as_secs_f64(),
            synced.cpu.as_secs_f64(),
            synced.rss >> 20,
            synced.written as f64 / 1e6,
            if clean { ", clean" } else { "" }
        )
    }
}

/// Runs everything and prints the tables.
pub async fn run(args: Images) -> Result<()> {
    let mut report = Report::begin("vmlet bench: images")?;
    let mut pipelines = pipelines::all(&args.vmlet, &std::env::current_exe()?);
    pipelines.retain(|pipeline| {
        let missing = if args.no_peers && ![FLOOR, VMLET].contains(&pipeline.name) {
            Some("not asked for".to_owned())
        } else {
            pipeline.missing()
        };
        if let Some(why) = &missing {
            report.line(&format!("{}: skipped: {why}", pipeline.name));
        }
        missing.is_none()
    });
    fs::create_dir_all(&args.work)?;
    let registry = Registry::start().await?;
    for image in &args.images {
        push(&args.set.join(image), &reference(&registry, image))?;
        let summary = fs::read_to_string(args.set.join(image).join("summary"))?;
        report.line(&format!("{image}: {summary}"));
    }
    let empty = || pipelines.iter().map(Row::new).collect::<Vec<_>>();
    let mut rows: Vec<(String, Vec<Row>)> = args.images.iter().map(|image| (image.clone(), empty())).collect();
    report.section("each run as it ends (seconds as shipped and synced)");
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0..args.rounds {
        let begin = start.elapsed();
        if args
            .max_seconds
            .is_some_and(|most| round > 0 && begin + longest > Duration::from_secs(most))
        {
            report.line(&format!("There was time for {round} of {} rounds.", args.rounds));
            break;
        }
        for (image, rows) in &mut rows {
            for turn in 0..pipelines.len() {
                // Nobody is always the first after a pause.
                let at = (turn + round) % pipelines.len();
                let pipeline = &pipelines[at];
                if rows[at].gave_up.is_some() {
                    continue;
                }
                let (sample, clean) = match once(pipeline, &reference(&registry, image), &args.work) {
                    Ok(done) => done,
                    Err(error) if ![FLOOR, VMLET].contains(&pipeline.name) => {
                        let last = error.root_cause().to_string();
                        // A panic ends with a note on how to see more of it.
                        let mut lines = last.lines().rev().map(str::trim);
                        let last = lines.find(|line| !line.is_empty() && !line.starts_with("note:"));
                        let last = last.unwrap_or_default();
                        println!(
                            "* round {}: {image}: {}: it fails, and is left out: {last}",
                            round + 1,
                            pipeline.name
                        );
                        rows[at].gave_up = Some(last.to_owned());
                        continue;
                    }
                    Err(error) => return Err(error.context(format!("{image}: {}", pipeline.name))),
                };
                ensure!(
                    clean || pipeline.name != VMLET,
                    "{image}: e2fsck finds errors in what vmlet made"
                );
                println!(
                    "* round {}: {image}: {}: {}",
                    round + 1,
                    pipeline.name,
                    sample.words(clean)
                );
                rows[at].add(sample, clean);
            }
        }
        longest = longest.max(start.elapsed() - begin);
    }
    for (image, rows) in &mut rows {
        report.section(image);
        for row in rows.iter() {
            if let Some(why) = &row.gave_up {
                report.line(&format!("{} cannot build it: {why}", row.name));
            }
        }
        rows.retain(|row| row.gave_up.is_none());
        println!();
        table(&mut report, rows);
    }
    if args.images.iter().any(|image| image == "plain") {
        report.section("the floor beside its stages run alone (plain)");
        print!("{}", stages(&reference(&registry, "plain"), &args.work)?);
    }
    if let Some(path) = &args.plot {
        fs::write(path, plot::svg(&rows)).with_context(|| path.display().to_string())?;
    }
    report.end();
    Ok(())
}

fn reference(registry: &Registry, image: &str) -> String {
    format!("{}/{image}:latest", registry.address())
}

/// In a process of its own: what a child is said to use at most is never less than what its parent once used.
fn push(layout: &Path, reference: &str) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("push")
        .arg("--layout")
        .arg(layout)
        .arg("--to")
        .arg(reference);
    let status = command.status()?;
    ensure!(status.success(), "pushing {} fails: {status}", layout.display());
    Ok(())
}

fn stages(reference: &str, work: &Path) -> Result<String> {
    let output = work.join("floor");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["floor", "--stages", "--reference", reference, "--output"])
        .arg(&output);
    let out = command.output()?;
    ensure!(out.status.success(), "floor: {}", String::from_utf8_lossy(&out.stderr));
    fs::remove_file(output)?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn once(pipeline: &Pipeline, reference: &str, work: &Path) -> Result<(Sample, bool)> {
    let run = tempfile::Builder::new().prefix("run.").tempdir_in(work)?;
    let (dir, output, log) = (
        run.path().join("stores"),
        run.path().join("disk"),
        run.path().join("log"),
    );
    fs::create_dir(&dir)?;
    // What earlier runs left to be written back is not this one's.
    ensure!(
        Command::new("sync").arg("-f").arg(work).status()?.success(),
        "sync fails"
    );
    let place = Place {
        reference,
        dir: &dir,
        output: &output,
    };
    let shipped = measure::run(pipeline.command(&place), &log)?;
    let synced = if pipeline.syncs {
        shipped
    } else {
        let mut sync = Command::new("sync");
        sync.arg(&output);
        shipped.then(measure::run(sync, &log)?)
    };
    let clean = pipeline.makes_disk && is_clean(&output)?;
    Ok((Sample { shipped, synced }, clean))
}

fn is_clean(disk: &Path) -> Result<bool> {
    let e2fsck = vmlet_e2e::program("e2fsck").context("e2fsck is missing: run scripts/deps")?;
    let mut command = Command::new(e2fsck);
    command.arg("-fn").arg(disk).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}

impl Row {
    fn new(pipeline: &Pipeline) -> Row {
        Row {
            name: pipeline.name,
            walls: Vec::new(),
            samples: Vec::new(),
            clean: 0,
            makes_disk: pipeline.makes_disk,
            gave_up: None,
        }
    }

    fn add(&mut self, sample: Sample, clean: bool) {
        self.walls.push(sample.synced.wall.as_secs_f64());
        self.samples.push(sample);
        self.clean += usize::from(clean);
    }

    fn all(&self, of: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(of).collect())
    }

    fn cpu(&self) -> Spread {
        self.all(|sample| sample.synced.cpu.as_secs_f64())
    }
}

/// Several values of one thing.
#[derive(Clone, Copy)]
pub struct Spread {
    /// The smallest.
    pub least: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Describes values; of none, zeros.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |at: usize| values.get(at).copied().unwrap_or_default();
        Spread {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }

    fn cell(&self) -> String {
        format!("{:.2} [{:.2}-{:.2}]", self.median, self.least, self.most)
    }

    /// How many times `other` this is: of the medians, and of the smallest.
    fn times(&self, other: &Spread) -> String {
        format!("{:.2} ({:.2})", self.median / other.median, self.least / other.least)
    }
}

fn table(report: &mut Report, rows: &[Row]) {
    let find = |name| rows.iter().find(|row| row.name == name);
    let walls = |row: &Row| row.all(|sample| sample.synced.wall.as_secs_f64());
    let head = [
        "pipeline",
        "wall s as shipped",
        "wall s, synced",
        "CPU s",
        "peak RSS MiB",
        "MB written",
        "wall to floor",
        "CPU to floor",
        "wall to vmlet",
        "e2fsck clean",
    ];
    let ratio = |row: &Row, other: Option<&Row>, of: &dyn Fn(&Row) -> Spread| {
        other.map_or_else(String::new, |other| of(row).times(&of(other)))
    };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.to_owned(),
                row.all(|sample| sample.shipped.wall.as_secs_f64()).cell(),
                walls(row).cell(),
                row.cpu().cell(),
                format!(
                    "{:.0}",
                    row.all(|sample| sample.synced.rss as f64 / f64::from(1 << 20)).median
                ),
                format!("{:.0}", row.all(|sample| sample.synced.written as f64 / 1e6).median),
                ratio(row, find(FLOOR), &walls),
                ratio(row, find(FLOOR), &Row::cpu),
                ratio(row, find(VMLET), &walls),
                if row.makes_disk {
                    format!("{} of {}", row.clean, row.samples.len())
                } else {
                    "-".to_owned()
                },
            ]
        })
        .collect();
    report.table(&head, &cells);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_values_that_were_seen() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert_eq!(spread.times(&Spread::of(vec![1.0, 0.5])), "2.00 (2.00)");
        assert_eq!(Spread::of(Vec::new()).median, 0.0);
    }
}
