pragma circom 2.2.0;

// Moves an amount between two accounts. Its inputs are buses, which circom has since version 2.2.

bus Account() {
    signal id;
    signal balance;
}

bus Transfer() {
    Account() from;
    Account() to;
    signal limit[2];
}

template Move() {
    input Transfer() transfer;
    input Account() audited[2];
    signal input amount;
    output Account() from;
    output Account() to;
    signal output sum;

    from.id <== transfer.from.id;
    to.id <== transfer.to.id;
    from.balance <== transfer.from.balance - amount;
    to.balance <== transfer.to.balance + amount;
    signal balances <== audited[0].balance * audited[1].balance;
    signal ids <== audited[0].id * audited[1].id;
    sum <== transfer.limit[0] * transfer.limit[1] + balances + ids;
}

component main {public [transfer]} = Move();
