//! A flame graph: one self-contained SVG file, light or dark as the reader's system is.
//!
//! Each box is a function, as wide as its share of the samples, under the boxes of what it called; the whole is at the foot. Neighbours stand in the
//! order of their names: from left to right is no time. A box says its name and share when pointed at. (Brendan Gregg, *The Flame Graph*, CACM 2016.)

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Stacks;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
const TOP: f64 = 44.0;
/// Boxes narrower than this cannot be seen, and are left out with all that stands on them.
const NARROWEST: f64 = 0.4;
/// Room that one letter takes.
const LETTER: f64 = 6.6;

const STYLE: &str = "\
svg{--ground:#fff;--ink:#1f2933;font:11px ui-monospace,monospace}\
@media(prefers-color-scheme:dark){svg{--ground:#12181f;--ink:#e6eaee}}\
text{fill:var(--ink)}g text{fill:#1f2933;pointer-events:none}rect{rx:2px}g:hover rect{stroke:var(--ink)}\
.title{font:600 15px system-ui,sans-serif}";

/// A function and what it called.
#[derive(Default)]
struct Node<'a> {
    samples: u64,
    called: BTreeMap<&'a str, Node<'a>>,
}

impl Node<'_> {
    fn depth(&self) -> usize {
        let deepest = self.called.values().map(Node::depth).max();
        deepest.map_or(0, |depth| depth + 1)
    }
}

/// Draws it.
pub(crate) fn draw(stacks: &Stacks, title: &str) -> String {
    let mut all = Node::default();
    for (stack, &count) in stacks {
        let mut node = &mut all;
        node.samples += count;
        for frame in stack {
            node = node.called.entry(frame).or_default();
            node.samples += count;
        }
    }
    let height = TOP + ROW * (all.depth() + 1) as f64 + 10.0;
    let mut svg = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"flame graph\">\n\
         <style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"var(--ground)\"/>\n\
         <text class=\"title\" x=\"10\" y=\"26\">{}</text>\n",
        escaped(title)
    );
    let scale = (WIDTH - 20.0) / all.samples.max(1) as f64;
    let foot = height - 10.0 - ROW;
    row(&mut svg, "all", &all, (10.0, foot), scale, all.samples);
    svg.push_str("</svg>\n");
    svg
}

fn row(svg: &mut String, name: &str, node: &Node<'_>, at: (f64, f64), scale: f64, all: u64) {
    let (left, top) = at;
    let width = node.samples as f64 * scale;
    if width < NARROWEST {
        return;
    }
    let share = 100.0 * node.samples as f64 / all.max(1) as f64;
    let letters = (width / LETTER) as usize;
    let shown: String = match letters {
        0..3 => String::new(),
        _ if name.chars().count() <= letters => name.to_owned(),
        _ => name.chars().take(letters - 1).chain(['…']).collect(),
    };
    let _ = writeln!(
        svg,
        "<g><title>{}: {share:.1} %, {} samples</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
         height=\"{:.1}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
        escaped(name),
        node.samples,
        ROW - 1.0,
        colour(name),
        left + 3.0,
        top + 12.0,
        escaped(&shown)
    );
    let mut left = left;
    for (name, called) in &node.called {
        row(svg, name, called, (left, top - ROW), scale, all);
        left += called.samples as f64 * scale;
    }
}

/// Ours, what we build on, and everything else, told apart; alike names look alike.
fn colour(name: &str) -> String {
    let hue = match name {
        _ if name.contains("mds_") || name.contains("mydatastore") => 28,
        _ if name.contains("::") => 200,
        _ => 55,
    };
    let shade = xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % 16;
    format!("hsl({hue},80%,{}%)", 62 + shade)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_their_share_and_stand_on_their_callers() {
        let stack = |frames: &[&str]| frames.iter().map(|&frame| frame.to_owned()).collect();
        let stacks = Stacks::from([
            (stack(&["mds-data", "turn", "parse<T>"]), 30),
            (stack(&["mds-data", "turn"]), 10),
            (stack(&["mds-store", "sync"]), 60),
        ]);
        let svg = draw(&stacks, "a & b");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &amp; b"));
        for (name, share, samples) in [
            ("all", "100.0", 100),
            ("mds-data", "40.0", 40),
            ("turn", "40.0", 40),
            ("parse&lt;T&gt;", "30.0", 30),
            ("mds-store", "60.0", 60),
        ] {
            let title = format!("<title>{name}: {share} %, {samples} samples</title>");
            assert!(svg.contains(&title), "{title} in {svg}");
        }
        // The width of all is 1180: 30 samples of 100 are 354.
        let parse = svg.lines().find(|line| line.contains("parse")).unwrap();
        assert!(parse.contains("width=\"354.0\""), "{parse}");
        assert!(parse.contains(&format!("y=\"{TOP:.1}\"")), "{parse}");
    }

    #[test]
    fn nothing_was_seen_is_a_picture_too() {
        assert!(draw(&Stacks::new(), "idle").contains("</svg>"));
    }
}
