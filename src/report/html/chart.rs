//! A chart: lines over steps as inline SVG, its labels as HTML beside it, so that the drawing stretches and the words do
//! not. It must never know what the numbers mean.

use std::fmt::Write;

use super::number;

/// How a line is drawn: the names of its classes in `page.css`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// What was measured, noise and all.
    Raw,
    /// What to look at.
    Strong,
    /// Few values, each a dot.
    Dotted,
}

/// One line of a chart.
pub(super) struct Line {
    pub name: &'static str,
    pub style: Style,
    /// By rising step; a value that is not finite is a gap.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub(super) struct Chart {
    pub title: &'static str,
    pub unit: &'static str,
    pub lines: Vec<Line>,
    /// Whether the axis begins at zero.
    pub from_zero: bool,
    pub tall: bool,
}

/// Most pieces that a line is drawn in; each is at most two points, so that no peak is lost.
const PIECES: usize = 600;
/// Units of the drawing from side to side, both ways.
const SIDE: f64 = 1000.0;

/// An axis: its ends and its marks.
struct Axis {
    low: f64,
    high: f64,
    marks: Vec<f64>,
}

impl Axis {
    /// Ends on marks, about `wanted` of them.
    fn round(low: f64, high: f64, wanted: f64) -> Axis {
        let step = round_step((high - low) / wanted);
        let (first, last) = ((low / step).floor(), (high / step).ceil().max((low / step).floor() + 1.0));
        Axis { low: first * step, high: last * step, marks: marks(first, last, step) }
    }

    /// Ends where the values end.
    fn tight(low: f64, high: f64, wanted: f64) -> Axis {
        let high = if high > low { high } else { low + 1.0 };
        let step = round_step((high - low) / wanted).max(1.0);
        Axis { low, high, marks: marks((low / step).ceil(), (high / step).floor(), step) }
    }

    /// Share of the way from low to high.
    fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(f64::MIN_POSITIVE).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

/// Multiples of a step, never so many that a mistaken scale could cost anything.
fn marks(first: f64, last: f64, step: f64) -> Vec<f64> {
    (0..32).map(|n| first + f64::from(n)).take_while(|n| *n <= last).map(|n| n * step).collect()
}

impl Chart {
    /// The chart as HTML, or nothing where there is no value to show.
    pub fn html(&self) -> String {
        let finite = |line: &Line| line.points.iter().copied().filter(|(_, y)| y.is_finite()).collect::<Vec<_>>();
        let all: Vec<(f64, f64)> = self.lines.iter().flat_map(finite).collect();
        if all.is_empty() {
            return String::new();
        }
        let (low, high) = range(all.iter().map(|p| p.1).collect());
        let y = Axis::round(if self.from_zero { low.min(0.0) } else { low }, high, if self.tall { 6.0 } else { 3.0 });
        let fold = |f: fn(f64, f64) -> f64, from| all.iter().map(|p| p.0).fold(from, f);
        let wanted = if self.tall { 8.0 } else { 4.0 };
        let x = Axis::tight(fold(f64::min, f64::INFINITY), fold(f64::max, f64::NEG_INFINITY), wanted);
        let mut out = format!(
            "<figure class=\"chart{}\" data-x0=\"{}\" data-x1=\"{}\" data-y0=\"{}\" data-y1=\"{}\">\n<figcaption>{}{}</figcaption>\n<div class=\"plot\">\n",
            if self.tall { " tall" } else { "" },
            x.low,
            x.high,
            y.low,
            y.high,
            self.title,
            self.legend()
        );
        for mark in &y.marks {
            let top = 100.0 * (1.0 - y.place(*mark));
            let _ = writeln!(out, "<span class=\"y\" style=\"top:{top:.3}%\">{}</span>", number::tick(*mark));
        }
        for mark in &x.marks {
            let left = 100.0 * x.place(*mark);
            let _ = writeln!(out, "<span class=\"x\" style=\"left:{left:.3}%\">{}</span>", number::tick(*mark));
        }
        out += &self.svg(&x, &y);
        out += "<div class=\"cursor\" hidden></div><div class=\"tip\" hidden></div>\n</div>\n";
        let _ = writeln!(out, "<script type=\"application/json\">{}</script>\n</figure>", self.data());
        out
    }

    fn legend(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" <small>{}</small>", self.unit) };
        if self.lines.len() < 2 {
            return unit;
        }
        let key = |line: &Line| format!("<span class=\"{}\"><i></i>{}</span>", class(line.style), line.name);
        format!("{unit}<span class=\"legend\">{}</span>", self.lines.iter().map(key).collect::<String>())
    }

    fn svg(&self, x: &Axis, y: &Axis) -> String {
        let names: Vec<&str> = self.lines.iter().map(|l| l.name).collect();
        let mut out = format!(
            "<svg viewBox=\"0 0 {SIDE} {SIDE}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}: {}\">\n",
            self.title,
            names.join(", ")
        );
        for mark in &y.marks {
            let at = SIDE * (1.0 - y.place(*mark));
            let _ = writeln!(out, "<path class=\"grid\" d=\"M0 {at:.1}H{SIDE}\"/>");
        }
        let place = |(step, value): (f64, f64)| (SIDE * x.place(step), SIDE * (1.0 - y.place(value)));
        for line in &self.lines {
            let points: Vec<_> = thinned(&line.points).into_iter().map(place).collect();
            let _ = writeln!(out, "<path class=\"{}\" d=\"{}\"/>", class(line.style), path(&points));
            if line.style == Style::Dotted {
                let dots: String = points.iter().map(|(x, y)| format!("M{x:.1} {y:.1}h0")).collect();
                let _ = writeln!(out, "<path class=\"dots\" d=\"{dots}\"/>");
            }
        }
        out + "</svg>\n"
    }

    /// What the pointer shows: for each line its name, its class, and its points.
    fn data(&self) -> String {
        let line = |line: &Line| {
            let points = thinned(&line.points).into_iter().filter(|(_, y)| y.is_finite());
            let points: Vec<String> = points.map(|(x, y)| format!("[{x},{}]", number::short(y))).collect();
            format!(
                "{{\"name\":\"{}\",\"class\":\"{}\",\"points\":[{}]}}",
                line.name,
                class(line.style),
                points.join(",")
            )
        };
        format!("[{}]", self.lines.iter().map(line).collect::<Vec<_>>().join(","))
    }
}

fn class(style: Style) -> &'static str {
    match style {
        Style::Raw => "raw",
        Style::Strong => "strong",
        Style::Dotted => "dotted",
    }
}

/// Values are drawn up to here, so that differences of two stay finite.
const MOST: f64 = 1e300;

/// From the least to the largest value; where a few lie far beyond all others, to where those end. The ends differ.
fn range(mut values: Vec<f64>) -> (f64, f64) {
    values.iter_mut().for_each(|v| *v = v.clamp(-MOST, MOST));
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    let most = values[(values.len() - 1) * 99 / 100];
    let size = low.abs().max(high.abs());
    match high - low {
        _ if size < 1.0 / MOST => (0.0, 1.0),
        spread if spread <= 1e-9 * size => (low - size / 20.0, high + size / 20.0),
        spread if spread > 4.0 * (most - low) && most > low => (low, low + 1.5 * (most - low)),
        _ => (low, high),
    }
}

/// At most two points a piece, the least and the largest, in their order; a piece without a value stays a gap.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for piece in points.chunks(points.len().div_ceil(PIECES).max(1)) {
        let finite = || piece.iter().copied().filter(|(_, y)| y.is_finite());
        let low = finite().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = finite().max_by(|a, b| a.1.total_cmp(&b.1));
        match (low, high) {
            (Some(a), Some(b)) if a.0 < b.0 => out.extend([a, b]),
            (Some(a), Some(b)) if b.0 < a.0 => out.extend([b, a]),
            (Some(a), _) => out.push(a),
            _ => out.extend(piece.first()),
        }
    }
    out
}

/// A path through points, with gaps where a value is not finite.
fn path(points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    let mut down = false;
    for (x, y) in points {
        if y.is_finite() {
            // Far outside of the drawing is as good as outside.
            let y = y.clamp(-SIDE, 2.0 * SIDE);
            let _ = write!(out, "{}{x:.1} {y:.1}", if down { 'L' } else { 'M' });
        }
        down = y.is_finite();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_span_the_values() {
        let axis = Axis::round(1.43, 4.21, 6.0);
        assert_eq!((axis.low, axis.high), (1.0, 4.5));
        assert_eq!(axis.marks.len(), 8);
        for (low, high) in [(0.0, 0.0), (1e-300, 1e-300), (-1e300, 1e308), (7.0, 7.0), (0.0, 1e-310)] {
            let (least, most) = range(vec![low, high]);
            let axis = Axis::round(least, most, 3.0);
            assert!(axis.high > axis.low && axis.high - axis.low < f64::INFINITY, "{low} {high}");
            assert!((2..12).contains(&axis.marks.len()), "{low} {high}: {:?}", axis.marks);
        }
    }

    #[test]
    fn thinning_keeps_each_peak_and_each_gap() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        points[7777].1 = 9.0;
        points[100..200].iter_mut().for_each(|p| p.1 = f64::NAN);
        let thin = thinned(&points);
        assert!(thin.len() <= 2 * PIECES && thin.contains(&(7777.0, 9.0)), "{}", thin.len());
        assert!(path(&thin).matches('M').count() == 2, "a gap begins the path anew");
    }

    #[test]
    fn a_wild_value_does_not_flatten_the_rest() {
        let mut values = vec![1.0; 1000];
        values.extend((0..1000).map(|n| 1.0 + f64::from(n) / 1000.0));
        values.push(1e9);
        assert!(range(values).1 < 3.0);
    }
}
