//! GELU: both forms on every device within the bound; the derivative against central differences in f64.

use crate::rig;
use gaufre::program::{check, gelu};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("gelu") {
        for program in gelu::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}
