// What follows is compiled for any processor.
#define DK_ISA baseline
#define DK_BYTES 16
