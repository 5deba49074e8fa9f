//! Every order in which two threads may use a ring, tried by loom (`cargo xtask model`). loom follows the memory model, so a
//! missing fence shows here and not once a month on somebody's machine. The ring is 8 bytes small: one word, always at its end.
