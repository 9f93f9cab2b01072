// c = a * b + 5 * k[0] * k[2] in the first circom: for witness programs of the old interface.
template Multiplier() {
    signal private input a;
    signal private input b;
    signal input k[3];
    signal output c;
    signal weight;

    weight <== 5 * k[0] * k[2];
    k[1] * (k[1] - 1) === 0;
    c <== a * b + weight;
}

component main = Multiplier();
