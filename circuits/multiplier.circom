pragma circom 2.0.0;

// c = a * b: the smallest circuit there is. Both factors are secret, the product is public.
template Multiplier() {
    signal input a;
    signal input b;
    signal output c;

    c <== a * b;
}

component main = Multiplier();
