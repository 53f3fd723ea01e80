"""Independent answers: NumPy and mpmath only, nothing imported from filterdyn."""
