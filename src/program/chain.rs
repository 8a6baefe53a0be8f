//! A relay as data: a kernel whose last parameter words say which part of its lines to play and whose last binding holds
//! what tiles hand on. It knows lengths, words and views; it must never know what is summed.

use super::relay::{Axis, Part, Relay};
use crate::device::{Buffer, Device, Kernel, Launch, Result, View};
use crate::wafer::Work;

/// Declares the parameters of a kernel that is relayed, as [`params!`](crate::params) does: the given fields, then the words
/// of a [`Cut`].
macro_rules! relay_params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($fields:tt)* }) => {
        $crate::params! {
            $(#[$meta])*
            $vis struct $name {
                $($fields)*
                /// Passes to run, one a bit.
                passes: u32,
                /// First line.
                first_line: u32,
                /// First block of each line.
                first_block: u32,
                /// Blocks of each line in this launch.
                blocks: u32,
                /// Length of a block along the line; where a tile plays the whole line, that of the line.
                block_len: u32,
                /// 1: a tile begins with what it carries, and leaves there what it hands on.
                carried: u32,
            }
        }
    };
}
pub(super) use relay_params;

relay_params! {
    /// The last parameter words of a kernel that is relayed: which part of its lines a launch plays. Tile g of the launch
    /// plays block `first_block + g % blocks` of line `first_line + g / blocks`, and what it carries is slot g.
    pub struct Cut {}
}

/// What a tile plays of its line: steps `from .. to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The line.
    pub line: usize,
    /// First step.
    pub from: usize,
    /// The step after the last.
    pub to: usize,
    /// Whether the line ends here.
    pub ends: bool,
}

impl Stretch {
    /// Whether the line begins here.
    pub fn begins(&self) -> bool {
        self.from == 0
    }
}

impl Cut {
    /// All passes over whole lines of a length.
    pub fn whole(len: u32) -> Cut {
        Cut::new(&Part::whole(0), len, len)
    }

    /// A part of lines of a length, in blocks of another.
    fn new(part: &Part, len: u32, block_len: u32) -> Cut {
        Cut {
            passes: part.passes,
            first_line: part.first_line,
            first_block: part.first_block,
            blocks: part.blocks,
            block_len: if part.carried { block_len } else { len },
            carried: part.carried.into(),
        }
    }

    /// The last words of a kernel's parameters.
    pub fn of<P: bytemuck::NoUninit>(params: &P) -> Cut {
        let bytes = bytemuck::bytes_of(params);
        bytemuck::pod_read_unaligned(&bytes[bytes.len() - size_of::<Cut>()..])
    }

    /// The words of a launch: those of `params`, with this cut as the last of them.
    pub fn into_words<P: bytemuck::NoUninit>(self, params: &P) -> Vec<u32> {
        let mut words: Vec<u32> = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(params));
        let kept = words.len() - Cut::FIELDS.len();
        words[kept..].copy_from_slice(&self.words());
        words
    }

    /// Whether a pass is run.
    pub fn runs(&self, pass: u32) -> bool {
        self.passes >> pass & 1 == 1
    }

    /// What tile `tile` of the launch plays of its line, which has `len` steps.
    pub fn span(&self, tile: usize, len: u32) -> Stretch {
        let (tile, blocks, block) = (tile as u32, self.blocks, self.block_len);
        let from = ((self.first_block + tile % blocks) * block).min(len);
        let to = len.min(from + block);
        let line = (self.first_line + tile / blocks) as usize;
        Stretch { line, from: from as usize, to: to as usize, ends: to == len }
    }

    /// What a tile carries: its slot of `len` elements, or, where nothing is carried, a place of its own.
    pub fn slot<'a, F>(&self, carry: &'a mut [F], own: &'a mut [F], tile: usize, len: usize) -> &'a mut [F] {
        if self.carried == 1 { &mut carry[tile * len..][..len] } else { own }
    }
}

/// A relay, ready to be launched part by part.
pub(super) struct Chain {
    /// Its last parameters are those of [`Cut`], its last binding is the carry.
    pub kernel: &'static Kernel,
    /// What it does.
    pub work: Work,
    /// Along which tiles a line lies.
    pub axis: Axis,
    /// Lines.
    pub lines: u32,
    /// Steps of a line.
    pub len: u32,
    /// Steps of a block.
    pub block_len: u32,
    /// Blocks that each pass which gathers goes through, at most.
    pub gathers: &'static [u32],
    /// Whether a pass follows that uses what was gathered.
    pub applies: bool,
    /// Elements that a tile hands on.
    pub carry: usize,
    /// Parameter words; the last ones are set for each part.
    pub words: Vec<u32>,
    /// All views but that of the carry.
    pub views: Vec<View>,
}

impl Relay for Chain {
    fn name(&self) -> &'static str {
        self.kernel.name
    }

    fn work(&self) -> Work {
        self.work
    }

    fn axis(&self) -> Axis {
        self.axis
    }

    /// A line without steps is one block all the same: its result must be written.
    fn extent(&self) -> (u32, u32) {
        (self.lines, self.len.div_ceil(self.block_len).max(1))
    }

    fn gathers(&self) -> Vec<u32> {
        let blocks = self.extent().1;
        self.gathers.iter().map(|reach| blocks.min(*reach)).collect()
    }

    fn applies(&self) -> bool {
        self.applies
    }

    fn carry(&self) -> usize {
        self.carry
    }

    fn launch(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<()> {
        let cut = Cut::new(part, self.len, self.block_len);
        let params = [&self.words[..self.words.len() - Cut::FIELDS.len()], &cut.words()].concat();
        let views = [&self.views[..], &[carry.all()]].concat();
        let (kernel, variant) = (self.kernel, self.kernel.variant(device.class()));
        device.launch(&Launch { kernel, variant, groups: part.groups(), params: &params, views: &views })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    relay_params! {
        /// As a kernel has them.
        struct Odd {
            /// A word of its own.
            scale: f32,
        }
    }

    #[test]
    fn a_cut_is_the_last_words() {
        assert!(Odd::FIELDS.ends_with(Cut::FIELDS));
        let words = Cut::whole(9).into_words::<Odd>(&bytemuck::Zeroable::zeroed());
        assert_eq!(words, [0, u32::MAX, 0, 0, 1, 9, 0]);
        let params: Odd = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words));
        assert_eq!(Cut::of(&params).words(), Cut::whole(9).words());
    }

    #[test]
    fn spans_cover_a_line() {
        let part = Part { first_line: 4, lines: 2, first_block: 1, blocks: 3, passes: 2, carried: true };
        let cut = Cut::new(&part, 37, 10);
        let span = |line, from, to, ends| Stretch { line, from, to, ends };
        let want = [span(4, 10, 20, false), span(4, 20, 30, false), span(4, 30, 37, true), span(5, 10, 20, false)];
        assert_eq!([0, 1, 2, 3].map(|tile| cut.span(tile, 37)), want);
        assert_eq!(Cut::whole(37).span(3, 37), span(3, 0, 37, true));
        assert!(cut.runs(1) && !cut.runs(0) && !cut.runs(2));
    }
}
