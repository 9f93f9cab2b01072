pragma circom 2.0.0;

// A square, with a private input that nothing asks for: the compiler gives it no wire, and counts it among the inputs.
template UnusedInput() {
    signal input a;
    signal input note;
    signal output square;

    square <== a * a;
}

component main = UnusedInput();
