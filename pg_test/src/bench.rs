//! What the benchmarks have in common: variants that take turns in random order, what is said of their
//! figures, and the tables and the file in which it is said.

use crate::server::Server;
use crate::{place, run, say};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, exit};
use std::thread;

/// So many rounds, or with `--quick` so few: enough to see that the benchmark works.
pub fn rounds(full: usize, quick: usize) -> usize {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => full,
        [option] if option == "--quick" => quick,
        other => {
            eprintln!("the only option is --quick, not {other:?}");
            exit(2);
        }
    }
}

/// An order of so many variants, another each time it is asked for.
pub fn shuffled(length: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    fastrand::shuffle(&mut order);
    order
}

/// Figures of one variant, one a round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub fn extend(&mut self, others: Figures) {
        self.0.extend(others.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The latest.
    pub fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// How many of a hundred of them are such.
    pub fn percent(&self, such: impl Fn(f64) -> bool) -> Figures {
        let number = self.0.iter().filter(|figure| such(**figure)).count();
        Figures::from_iter([number as f64 * 100.0 / self.len() as f64])
    }

    /// The figure at this place of a hundred, by size; NaN if there is none.
    pub fn part(&self, of_hundred: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((last * of_hundred + 50) / 100)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.part(50)
    }

    pub fn max(&self) -> f64 {
        self.part(100)
    }

    /// Each round's figure divided by another variant's of the same round: what slows all variants of a
    /// round falls out.
    pub fn over(&self, other: &Figures) -> Figures {
        let ratios = self.0.iter().zip(&other.0).map(|(one, two)| one / two);
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }

    /// Less another variant's of the same round.
    pub fn less(&self, other: &Figures) -> Figures {
        let pairs = self.0.iter().zip(&other.0);
        pairs.map(|(one, two)| one - two).collect()
    }

    /// The median, and between which two figures the middle four fifths of the rounds are.
    pub fn text(&self, decimals: usize) -> String {
        let text = |of_hundred| format!("{:.decimals$}", rounded(self.part(of_hundred), decimals));
        match self.len() {
            0 => "–".to_string(),
            1 => text(50),
            _ => format!("{} ({}–{})", text(50), text(10), text(90)),
        }
    }
}

/// As it is shown; nothing is shown as -0.
fn rounded(figure: f64, decimals: usize) -> f64 {
    let units = 10_f64.powi(decimals as i32);
    (figure * units).round() / units + 0.0
}

impl FromIterator<f64> for Figures {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Figures {
        Figures(figures.into_iter().collect())
    }
}

/// A table of figures, with a row for each variant. The first is the baseline.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    pub rows: Vec<String>,
    pub columns: Vec<Column>,
    /// The variant that differs from the baseline in nothing, so that its ratio is noise.
    pub noise: Option<usize>,
}

/// A column of a table.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub decimals: usize,
    pub best: Best,
    /// Whether a picture is made of it.
    pub picture: bool,
    /// One for each row.
    pub cells: Vec<Figures>,
}

/// Which figure of a column is the best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Best {
    Lowest,
    Highest,
    #[default]
    None,
}

impl Table {
    pub fn new<'a>(title: impl Into<String>, rows: impl IntoIterator<Item = &'a str>) -> Table {
        Table {
            title: title.into(),
            rows: rows.into_iter().map(String::from).collect(),
            columns: Vec::new(),
            noise: None,
        }
    }

    /// Adds a column; its figures are in the order of the rows.
    pub fn column(
        &mut self,
        name: &str,
        decimals: usize,
        best: Best,
        cells: impl IntoIterator<Item = Figures>,
    ) -> &mut Column {
        self.columns.push(Column {
            name: name.to_string(),
            decimals,
            best,
            picture: false,
            cells: cells.into_iter().collect(),
        });
        let last = self.columns.len() - 1;
        &mut self.columns[last]
    }

    fn print(&self) {
        let width = |texts: &[String]| texts.iter().map(|text| text.chars().count()).max();
        let names = width(&self.rows).unwrap_or(0);
        let mut lines = vec![format!("{:names$}", "")];
        lines.extend(self.rows.iter().map(|name| format!("{name:names$}")));
        for column in &self.columns {
            let mut texts = vec![column.name.clone()];
            texts.extend(column.cells.iter().map(|cell| cell.text(column.decimals)));
            let width = width(&texts).unwrap_or(0) + 3;
            for (line, text) in lines.iter_mut().zip(texts) {
                line.push_str(&format!("{text:>width$}"));
            }
        }
        println!("\n{}\n{}", self.title, lines.join("\n"));
    }
}

impl Column {
    /// Also make a picture of it.
    pub fn picture(&mut self) {
        self.picture = true;
    }

    /// The rows with the best median, if there is a worse one: as they are shown.
    pub fn best(&self) -> Vec<usize> {
        let medians = self.cells.iter().map(Figures::median);
        let medians: Vec<f64> = medians.map(|it| rounded(it, self.decimals)).collect();
        let known = medians.iter().copied().filter(|median| !median.is_nan());
        let (lowest, highest) = (
            known.clone().fold(f64::INFINITY, f64::min),
            known.fold(f64::NEG_INFINITY, f64::max),
        );
        let best = match self.best {
            Best::Lowest if lowest < highest => lowest,
            Best::Highest if lowest < highest => highest,
            _ => return Vec::new(),
        };
        let rows = 0..medians.len();
        rows.filter(|row| medians[*row] == best).collect()
    }
}

/// What a benchmark found on one server.
#[derive(Serialize, Deserialize)]
pub struct Found {
    /// When, on what, and with which PostgreSQL.
    pub machine: String,
    /// How much was measured.
    pub measured: String,
    pub tables: Vec<Table>,
}

/// By the server's major.
pub type Kept = BTreeMap<u32, Found>;

/// Where the files of figures are.
pub fn dir() -> PathBuf {
    place::checkout().join("target/bench")
}

/// Prints what a benchmark found, and writes it to `target/bench/NAME.json`, a member for each major; keeps
/// those of the majors that were not measured this time.
pub fn report(name: &str, server: &Server, measured: String, tables: Vec<Table>) {
    let machine = machine(server);
    println!("\n{machine}\n{measured}");
    tables.iter().for_each(Table::print);
    let file = dir().join(name).with_extension("json");
    let mut kept = kept(&file).unwrap_or_default();
    let found = Found {
        machine,
        measured,
        tables,
    };
    kept.insert(server.major, found);
    let json = serde_json::to_string(&kept).expect("JSON");
    fs::create_dir_all(dir())
        .and_then(|()| fs::write(&file, json))
        .expect("write the figures");
    say(format_args!(
        "the figures are in {}; cargo bench-report makes docs/benchmarks.md of all there are",
        file.display()
    ));
}

/// The figures of a file; None if there are none that this version can read.
pub fn kept(file: &std::path::Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn machine(server: &Server) -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("unknown".to_string(), |(_, value)| value.trim().to_string())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    format!(
        "{}, {} cores, {}, {:.0} GB, Linux {}, {}; load average at the end, its own included, {}",
        server.config("--version"),
        thread::available_parallelism().map_or(0, usize::from),
        field(&read("/proc/cpuinfo"), "model name"),
        memory / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim(),
        run(Command::new("date").args(["-u", "+%Y-%m-%d"])).trim(),
        load.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figures: &[f64]) -> Figures {
        figures.iter().copied().collect()
    }

    #[test]
    fn parts() {
        let some = figures(&[3.0, 1.0, 2.0]);
        assert_eq!((some.part(0), some.median(), some.max()), (1.0, 2.0, 3.0));
        assert_eq!((some.part(10), some.part(90)), (1.0, 3.0));
        assert!(figures(&[]).median().is_nan());
        assert_eq!(figures(&[-0.1]).text(0), "0");
        assert_eq!(some.text(1), "2.0 (1.0–3.0)");
        assert_eq!(some.percent(|figure| figure > 3.0), figures(&[0.0]));
    }

    #[test]
    fn a_ratio_is_of_the_same_round() {
        let ratios = figures(&[2.0, 6.0, 1.0]).over(&figures(&[1.0, 2.0, 0.0]));
        assert_eq!(ratios, figures(&[2.0, 3.0]));
    }

    #[test]
    fn an_order_has_each_variant_once() {
        let mut order = shuffled(7);
        order.sort();
        assert_eq!(order, (0..7).collect::<Vec<_>>());
    }

    #[test]
    fn the_best_of_a_column() {
        let mut table = Table::new("", ["one", "two", "three", "none"]);
        let cells = [&[2.0][..], &[1.0], &[2.0], &[]].map(figures);
        assert_eq!(
            table.column("", 0, Best::Highest, cells.clone()).best(),
            [0, 2]
        );
        assert_eq!(table.column("", 0, Best::Lowest, cells.clone()).best(), [1]);
        assert!(table.column("", 0, Best::None, cells).best().is_empty());
        let alike = [&[2.1][..], &[1.9]].map(figures);
        assert!(table.column("", 0, Best::Lowest, alike).best().is_empty());
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let mut table = Table::new("title", ["one"]);
        table
            .column("", 0, Best::Highest, [figures(&[1.5, 2.0])])
            .picture();
        let json = serde_json::to_string(&table).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Table>(&json).expect("a table"),
            table
        );
    }
}
