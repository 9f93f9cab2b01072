pragma circom 2.0.0;

// A matrix of secret amounts, each below 2^bits, whose sum is public and at most a public ceiling.

// The bits of x, least significant first; x must be below 2^n.
template Bits(n) {
    signal input x;
    signal output bit[n];

    var sum = 0;
    for (var i = 0; i < n; i++) {
        bit[i] <-- (x >> i) & 1;
        bit[i] * (bit[i] - 1) === 0;
        sum += bit[i] * (1 << i);
    }
    sum === x;
}

template RangeCheck(rows, columns, bits) {
    signal input amount[rows][columns];
    signal input ceiling;
    signal output total;

    component range[rows][columns];
    var sum = 0;
    for (var i = 0; i < rows; i++) {
        for (var j = 0; j < columns; j++) {
            // An assert reports early and by name what the constraints of Bits would refuse anyhow.
            assert(amount[i][j] < (1 << bits));
            range[i][j] = Bits(bits);
            range[i][j].x <== amount[i][j];
            sum += amount[i][j];
        }
    }
    total <== sum;

    component left = Bits(bits + 8);
    left.x <== ceiling - total;
    log(left.x);
}

component main {public [ceiling]} = RangeCheck(3, 4, 32);
