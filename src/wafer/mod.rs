//! The wafer: geometry, blocks, routes, SRAM and closed forms. Pure data and arithmetic; it names nothing above itself.
