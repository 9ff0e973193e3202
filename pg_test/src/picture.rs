//! Pictures of figures: bars, with the spread of the rounds as a line, as SVG.

use std::fmt::Write;

/// The bars of one server, under its name.
pub struct Group {
    pub name: String,
    pub bars: Vec<Bar>,
    /// Between which figures a variant is that differs from the baseline in nothing.
    pub noise: Option<(f64, f64)>,
}

pub struct Bar {
    pub name: String,
    pub figure: f64,
    /// The middle four fifths of the rounds.
    pub spread: (f64, f64),
    /// What is written beside it.
    pub text: String,
}

const NAMES: f64 = 440.0;
const BARS: f64 = 380.0;
const TEXTS: f64 = 190.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 30.0;

pub fn bars(title: &str, groups: &[Group]) -> String {
    let all = || groups.iter().flat_map(|group| &group.bars);
    let figures = all().flat_map(|bar| [bar.figure, bar.spread.1]);
    let noise = groups.iter().filter_map(|group| group.noise.map(|it| it.1));
    let most = figures.chain(noise).filter(|it| it.is_finite());
    let most = most.fold(0.0, f64::max);
    let x = |figure: f64| {
        NAMES
            + if most > 0.0 {
                figure / most * BARS
            } else {
                0.0
            }
    };
    let heads = HEAD * (groups.len() + 1) as f64;
    let (width, height) = (
        NAMES + BARS + TEXTS,
        heads + ROW * all().count() as f64 + 10.0,
    );
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="10" y="20" font-weight="bold">{}</text>
"##,
        escaped(title)
    );
    let mut y = HEAD;
    for group in groups {
        line(&mut svg, text(10.0, y + 20.0, &group.name, ""));
        y += HEAD;
        if let Some((from, to)) = group.noise {
            let height = ROW * group.bars.len() as f64;
            line(
                &mut svg,
                rect(x(from), y, x(to) - x(from), height, "#dddddd"),
            );
        }
        for bar in &group.bars {
            let middle = y + ROW / 2.0;
            let end = r#" text-anchor="end""#;
            line(&mut svg, text(NAMES - 8.0, middle + 4.0, &bar.name, end));
            let mut beside = NAMES;
            if bar.figure.is_finite() {
                let length = x(bar.figure) - NAMES;
                line(&mut svg, rect(NAMES, y + 4.0, length, ROW - 8.0, "#6c9bd2"));
                let (from, to) = (x(bar.spread.0), x(bar.spread.1));
                let path = format!(
                    r##"<path d="M{from:.1} {middle:.1}H{to:.1}" stroke="#1b3a5c" stroke-width="2"/>"##
                );
                line(&mut svg, path);
                beside = x(bar.figure).max(to);
            }
            line(&mut svg, text(beside + 6.0, middle + 4.0, &bar.text, ""));
            y += ROW;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, element: String) {
    let _ = writeln!(svg, "{element}");
}

fn rect(x: f64, y: f64, width: f64, height: f64, fill: &str) -> String {
    format!(
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}" fill-opacity="0.8"/>"#
    )
}

fn text(x: f64, y: f64, text: &str, attributes: &str) -> String {
    format!(
        r#"<text x="{x:.1}" y="{y:.1}"{attributes}>{}</text>"#,
        escaped(text)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
