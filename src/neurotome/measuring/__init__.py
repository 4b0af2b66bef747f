"""From labels to numbers: fractions of classes, cells, and how sure one is of them; block by block, in bounded memory."""
